"""Lines and documents as other programs write them, for tests of what is made of them."""

from __future__ import annotations

import json
from typing import Any

from imported import START_NS

# -- PresentMon -----------------------------------------------------------------------------------

V1 = (
    "Application,ProcessID,SwapChainAddress,Runtime,SyncInterval,PresentFlags,AllowsTearing,PresentMode,Dropped,"
    "TimeInSeconds,MsBetweenPresents,MsBetweenDisplayChange,MsInPresentAPI,MsUntilRenderComplete,MsUntilDisplayed"
)
V2 = (
    "Application,ProcessID,SwapChainAddress,PresentRuntime,SyncInterval,PresentFlags,AllowsTearing,PresentMode,"
    "CPUStartTime,FrameTime,CPUBusy,CPUWait,GPULatency,GPUTime,GPUBusy,GPUWait,DisplayLatency,DisplayedTime"
)
V23 = V2.replace("CPU", "MsCPU").replace("GPU", "MsGPU").replace("MsCPUStart", "CPUStart")


def v1(time: float, dropped: int = 0, rest: str = "10,1,5,20", app: str = "g.exe") -> str:
    """A present of 1.x, 10 ms after the one before."""
    return f"{app},1,0x1,DXGI,0,0,0,Composed: Flip,{dropped},{time},10.0,{rest}"


def v2(start: float, latency: str = "30", app: str = "g.exe", chain: str = "0x1") -> str:
    """A frame of 2.x: CPU for 10 of 16 ms, GPU from 4 to 16 ms."""
    return f"{app},1,{chain},DXGI,0,0,0,Composed: Flip,{start},16,10,6,4,12,11,1,{latency},{latency}"


# -- CapFrameX ------------------------------------------------------------------------------------


def capture(**members: Any) -> dict[str, Any]:
    """Three presents as CapFrameX 1.8 saves them; `members` of the run."""
    data = {
        "TimeInSeconds": [0.0, 0.01, 0.02],
        "MsBetweenPresents": [10.0, 10.0, 10.0],
        "MsInPresentAPI": [1.0, 1.0, 1.0],
        "MsUntilRenderComplete": [5.0, 5.0, 5.0],
        "MsUntilDisplayed": [20.0, 0.0, 20.0],
        "Dropped": [False, True, False],
        "GpuActive": [4.0, 4.0, 4.0],
    }
    run = {"Hash": "1", "PresentMonRuntime": "DXGI", "CaptureData": data, **members}
    info = {"AppVersion": "1.8.4", "GameName": "game", "CreationDate": "2026-10-01T12:00:00Z"}
    return {"Hash": "2", "Info": info, "Runs": [run]}


# -- MangoHud -------------------------------------------------------------------------------------

SYSTEM = ("os,cpu,gpu,ram,kernel,driver,cpuscheduler", "Linux,AMD Ryzen 7,AMD Radeon,48677468,7.2,,")
METRICS = "fps,frametime,cpu_load,cpu_power,gpu_load,gpu_temp,gpu_power,elapsed"


def mangohud(elapsed_ms: float, frametime: float, watts: float = 65.0) -> str:
    """A frame at 125 fps; cpu_power can't be read."""
    return f"125,{frametime},7.4,0,2,53,{watts},{round(elapsed_ms * 1e6)}"


# -- DL Streamer ----------------------------------------------------------------------------------


def traced(at_s: float, record: str) -> str:
    """A record in GStreamer's log."""
    return f"0:00:{at_s:012.9f} 79459 0x55736c57a060 TRACE             GST_TRACER :0:: {record};"


def element(at_s: float, name: str, latency: float, number: int, is_bin: int = 0) -> str:
    """A buffer left an element."""
    return traced(
        at_s,
        f"latency_tracer_element, name=(string){name}, frame_latency=(double){latency}, avg=(double)1, "
        f"min=(double)1, max=(double)1, frame_num=(uint){number}, is_bin=(boolean){is_bin}",
    )


def arrived(at_s: float, latency: float, number: int, sink: str = "") -> str:
    """A buffer reached the sink; with a sink's name as newer releases write it."""
    names = f"pipeline_name=(string)p, source_name=(string)s, sink_name=(string){sink}, " if sink else ""
    return traced(
        at_s,
        f"latency_tracer_pipeline, {names}frame_latency=(double){latency}, avg=(double)1, min=(double)1, "
        f"max=(double)1, latency=(double)21.279252, fps=(double)46.99, frame_num=(uint){number}",
    )


# -- DeepStream -----------------------------------------------------------------------------------


def component(name: str, begin: float, end: float, source: int | None = None) -> str:
    """A component that a batch went through, in the spelling with or without a source; ms since START."""
    where = "" if source is None else f" source_id = {source} pad_index = {source} frame_num = 8            "
    word = "component latency=" if source is None else "component_latency ="
    return (
        f"Comp name = {name}{where} in_system_timestamp = {START_NS // 10**6 + begin:f} "
        f"out_system_timestamp = {START_NS // 10**6 + end:f}               {word} {end - begin:f}"
    )


# -- BitNet ---------------------------------------------------------------------------------------


def event(at_s: float, kind: str, **attributes: object) -> str:
    """A line of telemetry, seconds since START."""
    line = {"timestamp": START_NS / 1e9 + at_s, "component": "run_inference", "event": kind}
    return json.dumps(line | {"attributes": attributes})


# -- split inference ------------------------------------------------------------------------------

OPERATIONS = (
    "timestamp,device,worker_instance,duration_ms,packet_id,layer_idx,operation,success,memory_used_mb,"
    "error_message"
)


def operation(at_s: float, layer: int, name: str, device: str = "igpu", end: str = "True,1.0,") -> str:
    """An operation of 10 ms that ended at a time, seconds since START."""
    return f"{START_NS // 10**9 + at_s},{device},w,10,1,{layer},{name},{end}"
