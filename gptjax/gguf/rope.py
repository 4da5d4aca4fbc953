"""Scaled rotary positions: metadata of a file, or a tensor of factors, and what transformers' rope_scaling says.

A file holds Llama 3's scaling as the factor that each pair's period is multiplied by (convert_hf_to_gguf.py), which is 1
for short periods, the full factor for long ones, and between them what three settings say. Settings that give the same
factors are read back from them.
"""

import numpy as np

from gptjax.errors import UserError
from gptjax.gguf.container import F32, U32, Value

FACTORS = "rope_freqs.weight"  # [K / 2]
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}  # as published
_CLOSE = 1e-5  # relative, of factors kept as float32


def read(metadata, reader, values: dict) -> dict | None:
    """rope_scaling of transformers; None: positions are plain. metadata: an architectures.Metadata."""
    kind = metadata.text("rope.scaling.type", "none")
    if FACTORS in reader.tensors:
        return _of_tensor(reader, values)
    factor = metadata.number("rope.scaling.factor", metadata.number("rope.scale_linear", 1.0))
    if kind == "none" and factor == 1:
        return None
    scaling = {"rope_type": "linear" if kind == "none" else kind, "factor": factor}
    if "rope.scaling.original_context_length" in metadata:
        scaling["original_max_position_embeddings"] = metadata.count("rope.scaling.original_context_length")
    return scaling


def periods(theta: float, head_size: int) -> np.ndarray:
    """float64 [K / 2]: tokens that each pair takes to turn once."""
    return 2 * np.pi * theta ** (np.arange(0, head_size, 2) / head_size)


def llama3_factors(scaling: dict, theta: float, head_size: int) -> np.ndarray:
    """float64 [K / 2], from the settings of rope_type llama3 (transformers, _compute_llama3_parameters)."""
    period, factor = periods(theta, head_size), scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] / period
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)


def _of_tensor(reader, values: dict) -> dict:
    """Raises UserError: factors that no settings of Llama 3 give."""
    shape = reader.tensors[FACTORS].shape
    fits = shape == (values["head_dim"] // 2,)
    scaling = of_factors(reader.read(FACTORS), values["rope_theta"], values["head_dim"]) if fits else None
    if scaling is None:
        raise UserError(
            f"{reader.where}: {FACTORS} of {list(shape)} holds factors of rotary positions that no settings of Llama 3"
            " give; expected a model whose positions are plain or scaled as Llama 3's."
        )
    return scaling


def of_factors(factors: np.ndarray, theta: float, head_size: int) -> dict | None:
    """rope_scaling of transformers with the settings that give these factors, float32 [K / 2]; None: none do."""
    if not (factors > 0).all():
        return None
    scaling = {"rope_type": "llama3", "factor": float(str(np.float32(factors.max())))}
    for settings in (_LLAMA3, *_between(factors.astype(np.float64), theta, head_size)):
        made = llama3_factors(scaling | settings, theta, head_size)
        if np.allclose(made, factors, rtol=_CLOSE, atol=0):
            return scaling | settings
    return None


def _between(factors: np.ndarray, theta: float, head_size: int) -> list[dict]:
    """Settings from the factors between 1 and the largest, which lie on a line: 1 / factor over turns. The low one may be
    chosen; it is 1."""
    largest = factors.max()
    between = (factors > 1 + _CLOSE) & (factors < largest * (1 - _CLOSE))
    if between.sum() < 2:
        return []
    smooth = (1 / factors[between] - 1 / largest) / (1 - 1 / largest)
    slope, start = np.polyfit(1 / periods(theta, head_size)[between], smooth, 1)
    if start >= 0:
        return []
    width = -1 / start  # high - low, for low = 1
    original = round(slope * width)
    return [{"low_freq_factor": 1.0, "high_freq_factor": 1 + width, "original_max_position_embeddings": original}]


def written(values: dict) -> tuple[dict, np.ndarray | None]:
    """(metadata, the tensor of factors or None) of a config.json. Raises UserError: scaling that llama.cpp does not have."""
    settings = values["rope_parameters"]
    kind, theta = settings["rope_type"], values["rope_theta"]
    metadata = {"rope.freq_base": Value(theta, F32)}
    if kind == "default":
        return metadata, None
    if kind == "llama3":
        return metadata, llama3_factors(settings, theta, values["head_dim"]).astype(np.float32)
    if kind not in ("linear", "yarn"):
        raise UserError(
            f"this model's rotary positions are scaled as {kind!r}, which no GGUF file of llama.cpp can say."
        )
    metadata |= {"rope.scaling.type": kind, "rope.scaling.factor": Value(settings["factor"], F32)}
    if (original := settings.get("original_max_position_embeddings")) is not None:
        metadata["rope.scaling.original_context_length"] = Value(original, U32)
    return metadata, None
