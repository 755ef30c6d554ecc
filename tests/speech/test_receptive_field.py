"""The bound computed from the layers holds on the network itself, and is no larger than it must be."""

from __future__ import annotations

import dataclasses

import torch
from speech_models import SMALL_VOCODER, small_vocoder

from antiphon.models.bigvgan import BigVgan
from antiphon.speech import ReceptiveField
from antiphon.speech.receptive_field import first_frame, last_frame

FRAME = 20


def touched_samples() -> torch.Tensor:
    """Output samples that frame FRAME reaches at all: every weight and tap is 1, so nothing fades or cancels."""
    small = small_vocoder()
    weights = {name: torch.ones_like(weight).double() for name, weight in small.weights.items()}
    weights |= {name: torch.zeros_like(w) for name, w in weights.items() if name.endswith((".bias", ".inv_beta"))}
    vocoder = BigVgan(dataclasses.replace(small.config, use_tanh_at_final=False), weights)
    mel = torch.zeros(1, 2 * FRAME + 1, 80).double()
    mel[0, FRAME] = 1.0
    return vocoder(mel)[0].nonzero()[:, 0]


def test_bound_is_what_the_layers_reach():
    touched = touched_samples()
    reaches = [
        s
        for s in range(480 * (2 * FRAME + 1))
        if first_frame(SMALL_VOCODER, s) <= FRAME <= last_frame(SMALL_VOCODER, s)
    ]
    assert touched.tolist() == reaches


def test_summary_agrees_with_the_sample_wise_bounds():
    field = ReceptiveField.of(SMALL_VOCODER)
    known, hop = 50, 480
    last_ready = known * hop - field.right_samples - 1
    assert last_frame(SMALL_VOCODER, last_ready) == known - 1
    assert last_frame(SMALL_VOCODER, last_ready + 1) == known
    assert field.left_frames == -first_frame(SMALL_VOCODER, 0)
    assert field.right_frames == last_frame(SMALL_VOCODER, hop - 1)
    assert field.first_frame(7 * hop) == 7 - field.left_frames


def test_the_released_vocoder_needs_40_frames():
    """Four blocks of kernels 3, 5, 7, 11 and dilations 1, 3, 5."""
    released = dataclasses.replace(
        SMALL_VOCODER, resblock_kernel_sizes=(3, 5, 7, 11), resblock_dilation_sizes=((1, 3, 5),) * 4
    )
    field = ReceptiveField.of(released)
    assert (field.left_frames, field.right_frames) == (40, 40)
