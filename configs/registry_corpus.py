"""A GPT-2 of 6.9M parameters on a mixture of seven sources: manuals, dictionaries, code and Chinese, in two stages.

    python notebooks/registry_corpus.py --out=corpus/raw
    sh notebooks/prepare_registry_corpus.sh corpus
    gptjax train --config=configs/registry_corpus.py --workdir=runs/registry_corpus

Hardware: two CPU cores, as two JAX devices that share each batch. Twenty minutes; what to expect stands in README.md.

Source: GPT-2's block; width, depth and learning rate are nobody's recipe. Towards the end the weight of code falls and
that of the manuals rises. steps_per_call, scan_unroll and the mesh change speed only.
"""

from ml_collections import ConfigDict

SOURCES = ("manuals", "html_manuals", "dictionaries", "python", "go", "zh_poems", "zh_html")


def get_config():
    config = ConfigDict()
    config.model = dict(context_length=256, n_layers=6, d_model=256, n_heads=8, dtype="float32", scan_unroll=6)
    config.data = dict(mixture={name: f"corpus/{name}" for name in SOURCES}, packing="best_fit")
    config.data.weights = dict(
        manuals=2.0, html_manuals=1.0, dictionaries=1.5, python=1.5, go=1.5, zh_poems=1.5, zh_html=1.0
    )
    config.data.weight_stages = (
        (
            2_000_000,
            dict(manuals=4.0, html_manuals=2.0, dictionaries=1.0, python=1.0, go=0.0, zh_poems=1.0, zh_html=1.0),
        ),
    )
    config.optim = dict(peak_lr=3e-3, warmup_steps=100, beta2=0.95)
    config.mesh = dict(replica=-1, fsdp=1, cpu_devices=2)
    config.train = dict(steps=1500, batch_size=8, steps_per_call=10, log_every=10)
    config.checkpoint = dict(every_steps=250)
    config.eval = dict(every_steps=250, batch_size=32, max_tokens=16_384)
    return config
