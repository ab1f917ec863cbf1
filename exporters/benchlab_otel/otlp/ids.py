"""Trace and span ids as uint64 columns, and their W3C text forms."""

from __future__ import annotations

import os
import re

import numpy as np

from benchlab_otel.model import Uint

_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?\Z")
_MASK = (1 << 64) - 1


def mix64(values: Uint) -> Uint:
    """A bijection of uint64 that looks random (the finalizer of SplitMix64, Steele et al. 2014)."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


def mix64_int(value: int) -> int:
    """`mix64` of one Python int."""
    z = (value + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def random64() -> int:
    """A random nonzero 64-bit number from the operating system."""
    return int.from_bytes(os.urandom(8), "big") | 1


def nonzero(values: Uint) -> Uint:
    """The ids with the invalid id 0 replaced by 1."""
    return np.maximum(values, np.uint64(1))


def derived_span_id(trace: Uint, purpose: int) -> Uint:
    """Span ids (n,) that follow from the trace ids (n, 2) and a number that names their purpose."""
    return nonzero(mix64(trace[:, 0] ^ mix64(trace[:, 1] + np.uint64(purpose))))


def traceparent(trace_hi: int, trace_lo: int, span: int) -> str:
    """The W3C traceparent header of a sampled span."""
    return f"00-{trace_hi:016x}{trace_lo:016x}-{span:016x}-01"


def parse_traceparent(text: str) -> tuple[int, int, int]:
    """(trace hi, trace lo, span id) of a W3C traceparent; ValueError tells what is wrong with it."""
    match = _TRACEPARENT.match(text.strip())
    if match is None:
        raise ValueError(f"not a W3C traceparent (00-<32 hex>-<16 hex>-<2 hex>): {text[:80]!r}")
    trace, span = int(match[1], 16), int(match[2], 16)
    if trace == 0 or span == 0:
        raise ValueError(f"traceparent with an all-zero id: {text[:80]!r}")
    return trace >> 64, trace & _MASK, span
