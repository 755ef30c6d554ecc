"""How far the approximate overlap modes are from the exact one on real mels: the demo model speaking real codes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from benchmarks.overlap import REPOSITORY, measure, speech_codes

from antiphon.checkpoint import load_flow, load_model_config, load_vocoder
from antiphon.models.bigvgan import BigVgan
from antiphon.models.flow_dit import FlowDit


@pytest.mark.slow
def test_distances_from_the_exact_sound():
    model, recording = REPOSITORY / "examples" / "demo_model", REPOSITORY / "examples" / "questions" / "p029.wav"
    config = load_model_config(model)
    dit = FlowDit(config.flow, load_flow(config, torch.float32))
    vocoder = BigVgan(config.vocoder, load_vocoder(config, torch.float32))
    codes = np.concatenate(speech_codes(model, [recording]))[:40]
    rows = {row.mode: row for row in measure(dit, vocoder, [codes], chunk=20, ode_steps=10)}
    for row in rows.values():
        print(row)
    assert rows["exact"].difference_db == -160
    assert rows["exact, context 6"].difference_db < -80 < rows["exact, context 4"].difference_db < -30
    assert rows["lookahead, hold 480"].difference_db < rows["lookahead, hold 0"].difference_db < -20
    assert rows["lookahead, hold 480"].log_spectral_distance_db < 0.3
    assert rows["lookahead, hold 480"].difference_db < rows["reference"].difference_db
