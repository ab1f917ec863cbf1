"""docs/trace-schema.md and the code name the same things."""

import re
from pathlib import Path

import numpy as np

from benchlab_otel import contract
from benchlab_otel.align.aligner import Aligner, align
from benchlab_otel.align.conditioner import Conditioner, condition_live, learn_live
from benchlab_otel.align.energy_spans import encode_energy
from benchlab_otel.otlp.decode import decode_traces
from benchlab_otel.simulate import power
from benchlab_otel.timebase import CLOCK_ATTRIBUTE

PAGE = (Path(__file__).parents[1] / "docs" / "trace-schema.md").read_text()


def test_every_name_of_the_contract_is_on_the_page():
    names = [
        value
        for key, value in vars(contract).items()
        if key.isupper() and isinstance(value, str) and re.fullmatch(r"[a-z_.]+", value)
    ]
    assert len(names) > 15
    for name in [*names, CLOCK_ATTRIBUTE]:
        assert f"`{name}" in PAGE, name


def test_energy_spans_have_the_attributes_of_the_page_and_no_others():
    random = np.random.default_rng(3)
    truth = power.simulate(power.Load((power.Stage("work", 50.0, 0.005),), duration_s=12.0), random)
    meter = power.Meter(noise=0.1)
    readings = power.measure(truth, meter, random)
    state, conditioner = Aligner(), Conditioner()
    aligned = []
    for body in power.requests([truth.frames], [readings], [meter]):
        aligned += condition_live(conditioner, state, align(state, decode_traces(body)))
        learn_live(conditioner, state)
    last = next(a for a in reversed(aligned) if a.conditioned)
    spans = decode_traces(encode_energy(last, {}))
    found = {name.replace("system", "<domain>").replace("work", "<stage>") for name in spans.attributes}
    documented = set(re.findall(r"^\| `([^`]*<domain>[^`]*)` \|", PAGE, re.MULTILINE))
    assert found == documented
