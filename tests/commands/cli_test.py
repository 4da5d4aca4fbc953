import argparse
import glob
import json
import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata

import pytest
from places import ROOT

from gptjax import cli, errors, start
from gptjax.data.tokenizers.base import definition_hash

CONFIGS = ROOT / "configs"
QUICKSTART = f"--config={CONFIGS / 'quickstart.py'}"
PLAN = ["plan", QUICKSTART, "--topology=h100:8"]
TRAIN = ["train", QUICKSTART, "--workdir=x", "--config.train.batch_size=16"]  # which the tests' eight devices divide


def test_help_names_the_commands_and_imports_no_jax():
    code = "import sys; from gptjax import cli\ntry: cli.main(['--help'])\nexcept SystemExit: pass\nprint('jax' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert all(name in output for name in ("train", "info", "eval", "sample", "parity", "bench"))
    assert output.splitlines()[-1] == "False"


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_help_of_a_command_imports_its_module_and_those_of_no_other(name):
    """But for commands that share a part: their parts are no commands."""
    code = f"import sys; from gptjax import cli\ntry: cli.main([{name!r}, '--help'])\nexcept SystemExit: pass\nprint(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    loaded = set(output.splitlines()[-1].split())
    assert loaded & {address for address, _ in cli.COMMANDS.values()} == {cli.COMMANDS[name][0]}
    assert not loaded & {"jax", "torch", "orbax", "tensorflow"}


def test_a_command_from_outside_is_a_module_and_a_line_of_the_table(capsys, tmp_path, monkeypatch):
    (tmp_path / "greeting.py").write_text(
        "def add_flags(parser):\n    parser.add_argument('--name', required=True)\n"
        "def run(args):\n    print(f'hello {args.name}')\n    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(cli.COMMANDS, "greet", ("greeting", "say hello"))
    assert cli.main(["greet", "--name=you"]) == 3 and capsys.readouterr().out == "hello you\n"
    assert cli.main(["greet", "--name=you", "--nmae=me"]) == 2
    assert "unknown argument '--nmae=me' of gptjax greet" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    assert "greet     say hello" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments,expected",
    [
        (["train", "--config=configs/quickstrat.py", "--workdir=x"], "no such file"),
        ([*TRAIN, "--config.optim.peek_lr=1"], "did you mean 'peak_lr'"),
        ([*TRAIN, "--config.optm.peak_lr=1"], "did you mean 'optim'"),
        ([*TRAIN, "--config.optim.peak_lr=fast"], "expected float"),
        ([*TRAIN, "--config.optim.name=adam"], "did you mean 'adamw'"),
        ([*TRAIN, "--config.optim.schedule=cosin"], "did you mean 'cosine'"),
        ([*TRAIN, "--config.model.norm=batchnorm"], "expected one of: layernorm, rmsnorm"),
        ([*TRAIN, "--config.model.mlp=gelu_tan"], "did you mean 'gelu_tanh'"),
        ([*TRAIN, "--config.model.position=alibi"], "expected one of: learned, rope"),
        ([*TRAIN, "--config.model.dtype=fp16"], "expected one of: bfloat16, float32"),
        ([*TRAIN, "--config.model.remat=some"], "expected one of: none, dots, attention, mlp, full, offload"),
        ([*TRAIN, "--config.model.attention=flash"], "expected one of: xla, cudnn, triton, splash"),
        ([*TRAIN, "--config.model.attention=cudnn"], "runs on gpu, not on cpu"),
        ([*TRAIN, "--config.model.n_heads=7"], "does not divide model.d_model"),
        ([*TRAIN, "--config.mesh.fsdp=3"], "but there are 8"),
        ([*TRAIN, "--config.train.batch_size=12"], "does not divide over 8 data shards"),
        ([*TRAIN, "--config.data.path=/nowhere/at_all.txt"], "/nowhere/at_all.txt"),
        ([*TRAIN, "--config.data.source=txt"], "expected one of"),
        ([*TRAIN, "--config.data.tokenizer=bpe"], "expected one of"),
        ([*TRAIN, "--confg.data.path=y"], "unknown argument '--confg.data.path=y'"),
        ([*TRAIN, "--branch_from=y"], "--branch_step=N belong together"),
        ([*TRAIN, "--branch_step=3"], "--branch_step=N belong together"),
        ([*TRAIN, "--branch_from=y", "--branch_step=last"], "--branch_step=last is no step of a run"),
        ([*TRAIN, "--branch_from=y", "--branch_step=-1"], "--branch_step=-1 is no step of a run"),
        (["bench", QUICKSTART, "--generate", "--config.model.context_length=79"], "use at least 80"),
        (["info", QUICKSTART, "--devices=0"], "--devices=0 is too small; use at least 1"),
        (["info", QUICKSTART, "--devices=-2"], "--devices=-2 is too small; use at least 1"),
        (["info", QUICKSTART, "--devices=3", "--config.mesh.tensor=2"], "needs a multiple of 2 devices"),
        ([*PLAN, "--price=-1"], "--price=-1 is not a price"),
        ([*PLAN, "--price=nan"], "--price=nan must be finite"),
        ([*PLAN, "--mesh=--"], "--mesh=--"),
        ([*PLAN, "--search", "--search_compiles=0"], "use at least 1"),
        ([*PLAN, "--row", "--json"], "--row prints one line, --json prints more"),
        ([*PLAN, "--row", "--search"], "--row prints one line, --search prints more"),
        ([*PLAN, "--mesh=fsdp=8,fsdp=4"], "gives fsdp twice; give each axis once"),
        (["eval", "--workdir=/nowhere/run"], "no such directory"),
        (["sample", f"--workdir={CONFIGS}"], "is not a run directory"),
        (["eval", "--workdir=x", "--config.model.n_layers=2"], "unknown argument"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, expected, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("gptjax: ") and error.count("\n") == 1 and "Traceback" not in error
    assert expected in error
    assert not (tmp_path / "x").exists()


def test_a_full_disk_is_one_line_and_a_code_that_a_supervisor_restarts():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-u", "-m", "gptjax", "info", QUICKSTART]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (errors.SAVE_FAILED, "gptjax: No space left on device\n")


@pytest.mark.parametrize("platform", ["gpu", "cuda", "tpu", "bogus"])
def test_a_platform_that_is_not_here_is_one_line(platform):
    import jax

    if platform in {device.platform for device in jax.devices()}:
        platform = "bogus"  # a machine that has it
    run = ROOT / "tests" / "golden" / "checkpoints" / "schema2"
    command = [sys.executable, "-m", "gptjax", "sample", f"--workdir={run}", "--max_tokens=1"]
    environment = os.environ | {"JAX_PLATFORMS": platform, "TPU_SKIP_MDS_QUERY": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("gptjax: ")]
    assert line.startswith(f"gptjax: JAX_PLATFORMS={platform}: JAX finds no such device on this machine")
    assert "unset JAX_PLATFORMS, or use cpu" in line


@pytest.mark.parametrize(
    "words",
    [
        ["sample", "runs/x", "--promt=To be"],
        ["sample", "--workdir=runs/x", "--promt=To be"],
        ["data", "--workdir=runs/x", "--stepp=1 2"],
    ],
)
def test_a_wrong_flag_whose_value_has_a_space_in_it_is_no_run(words, capsys):
    """argparse takes it for a word of its own."""
    assert cli.main(words) == 2
    assert capsys.readouterr().err.startswith(f"gptjax: unknown argument '{words[-1]}' of gptjax {words[0]};")


@pytest.mark.parametrize("there", ["_has_tpu", "_has_nvidia"])
def test_where_an_accelerator_is_jax_is_left_to_say_what_it_misses(there):
    """libtpu alone beside a GPU: JAX warns that the GPU's plugin is missing, unless it was told to take the CPU."""
    code = "\n".join([
        "from gptjax import start; import jax",
        f"start.{there} = lambda: True; start._plugins = lambda: {{'tpu'}}",
        "start.skip_absent_accelerators(); print(jax.config.jax_platforms)",
    ])  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "None\n", done.stderr


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries are left as they are")
@pytest.mark.parametrize("chosen,faults_again", [({}, False), ({"MALLOC_MMAP_THRESHOLD_": "100000"}, True)])
def test_on_a_cpu_freed_memory_is_kept_for_the_next_arrays_unless_the_environment_says_otherwise(chosen, faults_again):
    """Pages of the system's that are mapped when as much memory is taken a second time."""
    code = "\n".join([
        "import resource; from gptjax import start; start.start_jax()",
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt",
        "array = bytearray(64 << 20); del array; before = faults()",
        "array = bytearray(64 << 20); print(faults() - before)",
    ])  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    environment |= {"JAX_PLATFORMS": "cpu"} | chosen
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = (64 << 20) // os.sysconf("SC_PAGE_SIZE")
    assert (int(done.stdout) > pages // 2) == faults_again, done.stdout


WHICH_PLATFORMS = (
    "from gptjax import start; start.start_jax(); import jax; print(jax.config.jax_platforms, jax.devices())"
)


def test_libtpu_without_a_tpu_is_not_tried_and_prints_nothing():
    pytest.importorskip("libtpu", reason="needs the extra `tpu`")
    if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*") or glob.glob("/dev/nvidia*"):
        pytest.skip("this machine may have an accelerator")
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    run = ROOT / "tests" / "golden" / "checkpoints" / "schema2"
    load = f"import gptjax; gptjax.load({str(run)!r})"
    for command in (
        ["-c", WHICH_PLATFORMS],
        ["-c", load],
        ["-m", "gptjax", "sample", f"--workdir={run}", "--prompt=a", "--max_tokens=1"],
    ):
        done = subprocess.run([sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "E0000" not in done.stderr and "TPU" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    "plugin, given, platforms",
    [
        ("xla_mine", {}, None),  # an accelerator that only its own plugin knows
        ("xla_cuda13", {}, "cpu"),
        ("xla_cuda13", {"JAX_PLATFORMS": "cpu,tpu"}, "cpu,tpu"),
    ],
)
def test_platforms_that_are_asked_for_or_may_be_there_are_left_to_jax(plugin, given, platforms, tmp_path):
    if glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*") or glob.glob("/dev/nvidia*"):
        pytest.skip("this machine may have an accelerator")
    (tmp_path / "jax_plugins" / plugin).mkdir(parents=True)  # where JAX looks for plugins
    (tmp_path / "jax_plugins" / plugin / "__init__.py").touch()
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    code = WHICH_PLATFORMS.replace(", jax.devices()", "")
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment | {"PYTHONPATH": path} | given, cwd=ROOT, capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.stdout == f"{platforms}\n", done.stderr


def test_what_is_no_fault_of_the_machine_is_raised():
    import jax

    assert errors.of_the_machine(RuntimeError("RESOURCE_EXHAUSTED, says somebody")) is None
    assert "not enough memory" in errors.of_the_machine(MemoryError())
    assert "not enough memory" in errors.of_the_machine(
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
    )


def test_a_library_of_an_extra_that_is_not_installed_is_named_with_its_extra(tmp_path):
    """Of a run with a tokenizer.json, on a machine without `tokenizers`: for real, in a process that cannot import it."""
    run = shutil.copytree(ROOT / "tests" / "golden" / "checkpoints" / "schema2", tmp_path / "run")
    folder = run / "tokenizer"
    definition = json.dumps({"model": {"type": "BPE", "vocab": {}, "merges": []}}).encode()
    (folder / "tokenizer.model").write_bytes(definition)
    summary = {"kind": "hf", "hash": definition_hash("hf", definition), "base_hash": definition_hash("hf", definition)}
    (folder / "tokenizer.json").write_text(json.dumps(summary))
    code = "import sys; sys.modules['tokenizers'] = None; from gptjax import cli; sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "sample", f"--workdir={run}", "--max_tokens=1"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    said = "the tokenizer 'hf' (a tokenizer.json) needs tokenizers; pip install 'gptjax[data]'."
    assert [line for line in done.stderr.splitlines() if line.startswith("gptjax: ")] == [f"gptjax: {said}"]


def test_a_flag_that_is_missing_exits_2(capsys):
    assert cli.main(["train", QUICKSTART]) == 2
    told = capsys.readouterr().err
    assert told == "gptjax: gptjax train: the following arguments are required: --workdir; see gptjax train --help.\n"


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"gptjax {metadata.version('gptjax')}\n"


@pytest.mark.parametrize(
    "words, told",
    [
        (["trian", QUICKSTART], "gptjax has no command 'trian'; did you mean 'train'?"),
        (
            ["train", QUICKSTART, "--workdri=x"],
            "unknown argument '--workdri=x' of gptjax train; did you mean '--workdir'?",
        ),
        (
            ["sample", "x", "--step=last"],
            "gptjax sample: argument --step: invalid int value: 'last'; see gptjax sample --help.",
        ),
        ([], "the following arguments are required: COMMAND; see gptjax --help."),
    ],
)
def test_a_word_that_argparse_refuses_is_one_line(words, told, capsys):
    assert cli.main(words) == 2 and capsys.readouterr().err == f"gptjax: {told}\n"


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, {"XLA_CLIENT_MEM_FRACTION": "0.95"}),
        ({"XLA_CLIENT_MEM_FRACTION": "0.5"}, {"XLA_CLIENT_MEM_FRACTION": "0.5"}),
        ({"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}, {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}),
    ],
)
def test_jax_takes_most_of_a_gpu_unless_the_environment_says_how_much(given, expected, monkeypatch):
    for name in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.setenv(name, "")  # so that it is put back
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    start.start_jax()
    assert {name: value for name, value in os.environ.items() if name.endswith("CLIENT_MEM_FRACTION")} == expected


def test_an_override_may_follow_its_flag_as_a_word(capsys):
    assert cli.main(["info", f"--config={CONFIGS / 'gpt2_small.py'}", "--config.model.n_layers", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["params"]["non_embedding"] == 2 * 7_087_872 + 1536


@pytest.mark.parametrize(
    "name,total",
    {
        "gpt1": 116_534_784,
        "gpt2_small": 124_439_808,
        "gpt2_medium": 354_823_168,
        "gpt2_large": 774_030_080,
        "gpt2_xl": 1_557_611_200,
        "gpt3_125m": 125_226_240,
        "gpt3_350m": 355_871_744,
        "gpt3_760m": 760_300_032,
        "gpt3_1_3b": 1_315_723_264,
        "gpt3_2_7b": 2_651_553_280,
        "gpt3_6_7b": 6_658_404_352,
        "gpt3_13b": 12_853_386_240,
        "gpt3_175b": 174_604_259_328,
    }.items(),
)
def test_info_counts_the_papers_models_exactly(name, total, capsys):
    assert cli.main(["info", f"--config={CONFIGS / name}.py", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["params"]["total"] == total
    assert facts["flops_per_token"].keys() == {"6n", "6n_attn_full", "6n_attn_causal", "exact"}
    assert facts["bytes_per_device"].keys() == {"params", "optimizer", "activations"}
    assert facts["train_flops"] > 0 and {"non_embedding", "matmul"} < facts["params"].keys()


@pytest.mark.parametrize(
    "layers,width,heads,total",
    [  # Dey et al. 2023 (Cerebras-GPT), table 1
        (10, 768, 12, 111_050_496),
        (14, 1088, 17, 255_977_024),
        (18, 1536, 12, 590_310_912),
        (24, 2048, 16, 1_315_723_264),
        (32, 2560, 32, 2_651_553_280),
        (32, 4096, 32, 6_658_404_352),
        (40, 5120, 40, 12_853_386_240),
    ],
)
def test_info_counts_cerebras_gpt_exactly(layers, width, heads, total, capsys):
    shape = {"n_layers": layers, "d_model": width, "n_heads": heads, "context_length": 2048}
    overrides = [f"--config.model.{field}={value}" for field, value in shape.items()]
    assert cli.main(["info", f"--config={CONFIGS / 'gpt3_125m.py'}", "--json", *overrides]) == 0
    assert json.loads(capsys.readouterr().out)["params"]["total"] == total


def test_info_divides_parameters_over_the_mesh(capsys):
    config = f"--config={CONFIGS / 'gpt3_13b.py'}"
    alone = ["--config.mesh.tensor=1", "--devices=1"]
    sizes = []
    for arguments in (alone, ["--devices=64"]):
        assert cli.main(["info", config, "--json", *arguments]) == 0
        sizes.append(json.loads(capsys.readouterr().out)["bytes_per_device"])
    assert sizes[0]["optimizer"] == pytest.approx(2 * sizes[0]["params"], rel=1e-6)
    for kind in ("params", "optimizer"):  # what tensor leaves whole, fsdp splits
        assert sizes[0][kind] / 64 <= sizes[1][kind] < 1.01 * sizes[0][kind] / 64


def test_info_takes_the_machine_that_plan_does(capsys):
    config, sizes = f"--config={CONFIGS / 'gpt3_13b.py'}", []
    for arguments in (["--devices=64"], ["--topology=v5p:4x4x4"]):
        assert cli.main(["info", config, "--json", *arguments]) == 0
        sizes.append(json.loads(capsys.readouterr().out))
    assert sizes[0]["bytes_per_device"] == sizes[1]["bytes_per_device"] and sizes[0]["mesh"] == sizes[1]["mesh"]
    assert (sizes[1]["device_kind"], sizes[1]["num_devices"], sizes[1]["hbm_bytes"]) == ("TPU v5", 64, 95 * 2**30)
    assert cli.main(["info", config, "--topology=v5p:4x4x4", "--num_slices=2"]) == 0
    part = sum(sizes[0]["bytes_per_device"].values())
    said = capsys.readouterr().out
    assert "v5p:4x4x4 x 2 slices: 128 x TPU v5" in said and "replica=2" in said and "of its 95 GiB" in said and part


@pytest.mark.parametrize(
    "arguments,expected",
    [
        (["--topology=v5p:4x4"], "--topology=v5p:4x4: v5p slices are given as in --topology=v5p:4x4x4"),
        (["--topology=v5x:4x4"], "'v5x' is not known; nearest: v5p"),
        (["--topology=h100:8", "--num_slices=2"], "--num_slices=2 is for TPUs"),
        (["--topology=cpu:8", "--devices=8"], "--devices and --topology both say how many devices there are"),
        (["--num_slices=2"], "--num_slices=2 needs --topology=NAME"),
    ],
)
def test_a_machine_that_info_cannot_take_is_one_line(arguments, expected, capsys):
    assert cli.main(["info", QUICKSTART, "--config.model.vocab_size=256", *arguments]) == 2
    assert expected in capsys.readouterr().err


def _flags(parser, name: str) -> dict[str, str | None]:
    """{"command flag": its help} of a parser and those of its commands."""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command, sub in action.choices.items():
                found |= _flags(sub, f"{name} {command}")
        else:
            found[f"{name} {'/'.join(action.option_strings) or action.dest}"] = action.help
    return found


def test_every_flag_of_every_command_says_what_it_does():
    helps = _flags(cli.parser(), "gptjax")
    assert len(helps) > 150 and not [flag for flag, help in helps.items() if not help]
    fragments = [f"{flag}: {help}" for flag, help in helps.items() if str(help).startswith(("of ", "by "))]
    assert not fragments, "what the value is, stands first"
