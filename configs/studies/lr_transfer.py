"""Does a learning rate that is best at width 128 stay best at 512? In muP it does, in the standard form it does not.

    gptjax study run configs/studies/lr_transfer.py --out=studies/lr_transfer
    gptjax study fit studies/lr_transfer --method=isoflop --report=studies/lr_transfer/report

Hardware: two CPU cores; a run of width 512, of which there are 12, took 37 seconds in a quiet minute. What came out:
docs/lr_transfer.md. There is no law in it, since all runs have the same tokens: `study fit` is for its table and pictures
of learning rates, one for each form.

Source: Yang et al. 2022 (Tensor Programs V), figure 1, in small: GPT-2's block, Adam, the text that ships with gptjax by
character. Learning rates are a factor of two apart.
"""

from ml_collections import ConfigDict

from gptjax import study

WIDTHS = (128, 256, 512)
RATES = tuple(2.0**power for power in range(-13, -7))  # 1.2e-4 to 3.9e-3
FORMS = {"standard": {}, "mup": {"model.parametrization": "mup", "model.base_width": WIDTHS[0]}}


def get_study():
    base = ConfigDict()
    base.model = dict(context_length=64, dtype="float32", attention_scale="linear", init_std=0.05)
    base.data = dict(tokenizer="chars")
    base.optim = dict(schedule="constant", warmup_steps=10, weight_decay=0.0)
    base.train = dict(batch_size=8, steps_per_call=10, tensorboard=False)
    base.checkpoint = dict(every_steps=None, keep=2)
    base.eval = dict(max_tokens=16_384, batch_size=64)
    widths = study.by_width(WIDTHS, n_layers=2, head_dim=32)
    return study.Study(
        base=base,
        sizes={f"{form}-{name}": shape | fields for form, fields in FORMS.items() for name, shape in widths.items()},
        tokens=(100 * 8 * 64,),
        grid={"optim.peak_lr": RATES},
    )
