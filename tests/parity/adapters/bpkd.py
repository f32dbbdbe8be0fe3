"""Boundary Privileged KD: its body loss with full masks, against mmrazor's ChannelWiseDivergence."""

from __future__ import annotations

import torch
from parity.harness import Case, parity
from torch import Tensor

from kdzoo_segmentation.methods.bpkd import masked_shapes


@parity("bpkd", "body-full-mask")
def body(case: Case) -> dict[str, Tensor]:
    student, tau = case.leaf("student"), case.args["tau"]
    masks = {"all ones": torch.ones_like(student, dtype=torch.bool)}[case.args["body_mask"]]
    values = [
        masked_shapes(
            student, case.inputs["teacher"], masks, temperature=tau, mask_mode=mode, reduction="mean"
        )
        for mode in ("zero", "neginf")
    ]
    torch.testing.assert_close(*values)
    return case.with_gradients(loss=tau**2 * values[0])
