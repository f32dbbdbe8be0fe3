"""Contrastive representation distillation, against HobbitLong/RepDistiller: two batches in a row."""

from __future__ import annotations

import torch
from parity.harness import Case, parity
from torch import Tensor

from kdzoo.losses.nce import noise_contrastive
from kdzoo_vision.methods.crd import ContrastMemory, Embed


def embed(case: Case, side: str) -> Embed:
    weight, bias = (case.params[f"embed_{side[0]}_linear_{part}"] for part in ("weight", "bias"))
    module = Embed(weight.shape[1], weight.shape[0])
    module.load_state_dict({"linear.weight": weight, "linear.bias": bias})
    return module


@parity("crd", "crd")
def crd(case: Case) -> dict[str, Tensor]:
    given = case.inputs
    size, dim = given["memory_student"].shape
    memory = ContrastMemory([str(row) for row in range(size)], dim, case.args["nce_t"], case.args["nce_m"])
    memory.student.copy_(given["memory_student"])
    memory.teacher.copy_(given["memory_teacher"])
    embeds = {side: embed(case, side) for side in ("student", "teacher")}
    found: dict[str, Tensor] = {}
    for batch in ("1", "2"):
        rows, pairs = given[f"rows_{batch}"], given[f"pairs_{batch}"]
        anchors = {
            "student": embeds["student"](case.leaf(f"student_{batch}")),
            "teacher": embeds["teacher"](given[f"teacher_{batch}"]),
        }
        loss = torch.zeros(())
        for side, other in (("student", "teacher"), ("teacher", "student")):
            scores = memory.scores(anchors[side], other, pairs)
            loss = loss + noise_contrastive(scores[:, 0], scores[:, 1:], data_size=size, reduction="mean")
        (found[f"grad_student_{batch}"],) = torch.autograd.grad(loss, case.leaf(f"student_{batch}"))
        found[f"loss_{batch}"] = loss.detach()
        memory.seen = {side: (rows, anchors[side]) for side in anchors}
        memory.update()
        found |= {f"memory_{side}_{batch}": getattr(memory, side).clone() for side in anchors}
    # The official Z_v1 belongs to the student's scores, which are taken against the teacher's memory.
    return found | {"z_student": memory.z_teacher, "z_teacher": memory.z_student}
