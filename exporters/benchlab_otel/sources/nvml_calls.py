"""Calls into NVML (libnvidia-ml.so.1) by NVIDIA's own bindings: what a GPU doesn't tell is absent, never 0.

Functions, units and error codes: the NVML API reference of NVIDIA, https://docs.nvidia.com/deploy/nvml-api.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from struct import Struct
from typing import Any

import pynvml

from benchlab_otel.sources.reading import Reason, SourceError

INSTALL = (
    "install NVIDIA's driver (`nvidia-smi` should list the GPU); in a container, start it with --gpus all "
    "and NVIDIA_DRIVER_CAPABILITIES=utility"
)
_LOOK = (
    "sudo dmesg | grep -i -e nvrm -e xid\n"
    "tells why; `sudo nvidia-smi --gpu-reset`, while no program uses a GPU, or a reboot brings it back"
)
_ENDS_WORK = "looking changes nothing; a reset ends everything that runs on the GPU"
_FAILURES: dict[int, tuple[Reason, str, str]] = {  # reason, fix, what that risks
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: ("absent", INSTALL, ""),
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: (
        "absent",
        "sudo modprobe nvidia\n`nvidia-smi` tells more",
        "it loads the driver that is installed and sets nothing",
    ),
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: (
        "unknown",
        "reboot: the driver was updated while the one before is still loaded",
        "",
    ),
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: ("unknown", "install a newer driver of NVIDIA", ""),
    pynvml.NVML_ERROR_NO_PERMISSION: (
        "unreadable",
        "let this user read and write /dev/nvidiactl and /dev/nvidia0 (`ls -l /dev/nvidia*`)",
        "who can open them can also compute on the GPU; as installed, all users can",
    ),
    pynvml.NVML_ERROR_GPU_IS_LOST: ("lost", _LOOK, _ENDS_WORK),
    pynvml.NVML_ERROR_RESET_REQUIRED: ("lost", _LOOK, _ENDS_WORK),
    pynvml.NVML_ERROR_GPU_NOT_FOUND: ("lost", _LOOK, _ENDS_WORK),
    pynvml.NVML_ERROR_NOT_FOUND: ("lost", _LOOK, _ENDS_WORK),
    pynvml.NVML_ERROR_UNINITIALIZED: ("lost", "", ""),
    pynvml.NVML_ERROR_TIMEOUT: ("late", "", ""),
}
_GONE = {  # of any call: the GPU itself is away, not one of its values
    pynvml.NVML_ERROR_GPU_IS_LOST,
    pynvml.NVML_ERROR_RESET_REQUIRED,
    pynvml.NVML_ERROR_GPU_NOT_FOUND,
    pynvml.NVML_ERROR_UNINITIALIZED,
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED,
}
_LACKING = {  # of one call: asked again at once, it would be answered the same
    pynvml.NVML_ERROR_NOT_SUPPORTED,
    pynvml.NVML_ERROR_INVALID_ARGUMENT,
    pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
    pynvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    pynvml.NVML_ERROR_DEPRECATED,
}
_FIELD_VALUE = Struct("=IIqqIi8s")  # nvmlFieldValue_t: field, scope, time, latency, type, return code, value
_VALUES = [Struct(kind) for kind in "dILQqiH"]  # by nvmlValueType_t


def failure(error: pynvml.NVMLError, what: str) -> SourceError:
    """What an error code of NVML means to a source."""
    reason, fix, risk = _FAILURES.get(error.value, ("unknown", "", ""))
    return SourceError(reason, f"{what}: NVML: {error}", fix, risk)


def ask(function: Callable[..., Any], *arguments: Any) -> tuple[Any | None, bool]:
    """What a call tells, or None and whether that may pass: not where GPU or driver don't have it at all.

    NVMLError when the GPU is gone.
    """
    try:
        return function(*arguments), False
    except pynvml.NVMLError as error:
        if error.value in _GONE:
            raise
        return None, error.value not in _LACKING
    except UnicodeDecodeError:  # text from a damaged infoROM
        return None, False


def optional(function: Callable[..., Any], *arguments: Any) -> Any | None:
    """What a call tells, None where GPU, driver or user can't have it; NVMLError when the GPU is gone."""
    return ask(function, *arguments)[0]


class Survey:
    """Asks for many values, as `optional` does; `again` says that one of them has an error that may pass."""

    def __init__(self) -> None:
        self.again = False

    def told(self, function: Callable[..., Any], *arguments: Any) -> Any | None:
        """What a call tells, if anything."""
        answer, passing = ask(function, *arguments)
        self.again |= passing
        return answer

    def either(self, new: Callable[[], Any], old: Callable[[], Any]) -> Callable[[], Any]:
        """The newer of two calls, or the one that older drivers have where it tells nothing."""
        return old if self.told(new) is None else new


def field_values(handle: Any, fields: Sequence[int]) -> tuple[float, ...]:
    """The values of NVML_FI_DEV_… fields, by one call; NVMLError when one of them has none."""
    return _numbers(pynvml.nvmlDeviceGetFieldValues(handle, fields))


def field_meter(handle: Any, fields: Sequence[int]) -> Callable[[], tuple[float, ...]]:
    """`field_values` for many times a second: without what the bindings prepare anew each time."""
    array = pynvml.nvmlDeviceGetFieldValues(handle, fields)
    function = pynvml.nvmlLib.nvmlDeviceGetFieldValues

    def call() -> tuple[float, ...]:
        if code := function(handle, len(array), array):
            raise pynvml.NVMLError(code)
        return _numbers(array)

    return call


def energy_meter(handle: Any) -> Callable[[], tuple[float, ...]]:
    """nvmlDeviceGetTotalEnergyConsumption (mJ) in the same way."""
    told = ctypes.c_ulonglong()
    function, place = pynvml.nvmlLib.nvmlDeviceGetTotalEnergyConsumption, ctypes.byref(told)

    def call() -> tuple[float, ...]:
        if code := function(handle, place):
            raise pynvml.NVMLError(code)
        return (told.value,)

    return call


def _numbers(array: Any) -> tuple[float, ...]:
    """The values of an array of nvmlFieldValue_t."""
    numbers = []
    for *_, kind, code, value in _FIELD_VALUE.iter_unpack(array):
        if code:
            raise pynvml.NVMLError(code)
        numbers.append(_VALUES[kind].unpack_from(value)[0])
    return tuple(numbers)
