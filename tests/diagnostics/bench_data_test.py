"""gptjax/diagnostics/bench_data.py: what is counted and compared; not how fast anything is."""

import json
import os

import numpy as np
import pytest

from gptjax.config.fields import Config, DataConfig, ModelConfig, TrainConfig
from gptjax.data import tokenizers
from gptjax.data.rows.pipeline import TrainRows, open_text
from gptjax.data.tokenizers import save_tokenizer
from gptjax.diagnostics import bench_data
from gptjax.errors import UserError


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    config = DataConfig(tokenizer="sentencepiece", tokenizer_vocab_size=300)
    save_tokenizer(
        tokenizers.train_tokenizer(config, ["the cat sat on the mat, the dog did not. 猫坐。" * 200]), folder
    )
    return str(folder)


def test_texts_are_measured_once_each_and_no_token_differs_from_the_librarys(sentencepiece_folder):
    texts = ["the cat ", "", "sat 猫\n"] * 30
    rates = bench_data.tokenizer_rates(sentencepiece_folder, texts, seconds=60)
    assert rates["text_bytes"] == 30 * (8 + 0 + 8)
    assert rates["differ"] == 0 and rates["library"].startswith("sentencepiece ")
    assert rates["ratio"] == rates["ours"]["per_cpu_second"] / rates["direct"]["per_cpu_second"]
    assert "other tokens" not in bench_data.table({"tokenizers": [rates]})


def test_texts_of_which_the_library_makes_other_tokens_are_counted(sentencepiece_folder):
    rates = bench_data.tokenizer_rates(sentencepiece_folder, ["a cat", "a\u2581cat", "\u2581"], seconds=60)
    assert rates["differ"] == 2
    assert "other tokens for 2 texts" in bench_data.table({"tokenizers": [rates]})


def test_a_tokenizer_without_a_library_has_its_own_rates_alone():
    rates = bench_data.tokenizer_rates("bytes", ["abc"], seconds=1)
    assert rates["text_bytes"] == 3 and "direct" not in rates and "ratio" not in rates
    assert bench_data.table({"tokenizers": [rates]}).splitlines()[1].startswith("bytes ")


def test_no_text_is_refused():
    with pytest.raises(UserError, match="no text to measure"):
        bench_data.tokenizer_rates("bytes", [], seconds=1)


def test_rates_are_medians_over_rounds_and_means_over_their_sum():
    timer = bench_data.Timer()
    timer.wall, timer.cpu = [1.0, 2.0, 10.0], [0.5, 1.0, 2.5]
    rates = timer.rates([10, 10, 10])
    assert (rates["per_second"], rates["per_cpu_second"]) == (5, 10)
    assert (rates["mean_per_second"], rates["mean_per_cpu_second"]) == (30 / 13, 30 / 4)


def test_a_timer_calls_every_function_with_its_argument_and_counts_the_time_of_all():
    timer = bench_data.Timer()
    assert timer([len, sum], ["abc", range(3_000_000)]) == [3, sum(range(3_000_000))]
    assert len(timer.cpu) == 1 and 0.001 < timer.cpu[0] <= timer.wall[0] + 0.01


def test_the_pages_of_a_forgotten_file_are_not_in_memory(tmp_path):
    for name in ("given_up", "forgotten"):
        (tmp_path / name).write_bytes(os.urandom(1 << 20))
    with open(tmp_path / "given_up", "rb") as stream:
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if _is_in_memory(stream):
            pytest.skip(f"{tmp_path} is on a disk that keeps all its pages in memory")
    with open(tmp_path / "forgotten", "rb") as stream:
        assert _is_in_memory(stream)
        assert bench_data.forget_pages(tmp_path / "forgotten") == 1 << 20
        assert not _is_in_memory(stream)


def test_the_loader_is_measured_on_the_files_and_the_batches_of_training(tmp_path):
    config = _config(DataConfig(source="corpus", tokenizer="bytes", cache_dir=str(tmp_path)))
    rates = bench_data.loader_rates(config, seconds=0.2)
    (folder,) = [path for path in tmp_path.iterdir() if path.is_dir()]
    assert rates["file_bytes"] == os.path.getsize(folder / "train-00000-of-00001" / "c" / "0")
    assert rates["batch_tokens"] == 4 * 64
    assert 1 <= rates["cold"]["rounds"] <= bench_data.COLD_BATCHES and rates["warm"]["rounds"] > 1
    assert "loader, cold: " in bench_data.table({"loader": rates})


def test_the_reader_hashes_the_rows_of_its_step_and_no_others(tmp_path):
    text = bytes(np.random.default_rng(0).integers(97, 123, 5000, np.uint8))
    (tmp_path / "a.txt").write_bytes(text)
    config = _config(
        DataConfig(source="text", path=str(tmp_path / "a.txt"), tokenizer="bytes", cache_dir=str(tmp_path))
    )
    read, _ = bench_data.training_reader(config)
    store, objective = open_text(config.data, 64)
    rows = TrainRows(store, config.data, 64, objective)
    assert [read(step) for step in (0, 7)] == [int(rows.hashes(first, first + 4).sum()) for first in (0, 28)]
    assert read(0) != read(7)


def test_bench_measures_the_tokenizer_of_the_run_and_those_that_are_named(tmp_path):
    config = _config(DataConfig(source="corpus", tokenizer="bytes", cache_dir=str(tmp_path)))
    own = bench_data.bench(config, seconds=0.1)
    assert set(own) == {"loader", "tokenizers"}
    (rates,) = own["tokenizers"]
    assert rates["tokenizer"].startswith(str(tmp_path)) and rates["text_bytes"] > 0
    named = bench_data.bench(config, seconds=0.1, specs=["bytes", rates["tokenizer"]])
    assert [row["tokenizer"] for row in named["tokenizers"]] == ["bytes", rates["tokenizer"]]
    json.dumps(named)


def _config(data_config: DataConfig) -> Config:
    model = ModelConfig(context_length=64, n_layers=1, d_model=8, n_heads=1)
    return Config(data=data_config, model=model, train=TrainConfig(batch_size=4, steps=1))


def _is_in_memory(stream) -> bool:
    try:
        return os.preadv(stream.fileno(), [bytearray(1)], 0, os.RWF_NOWAIT) == 1
    except BlockingIOError:
        return False
