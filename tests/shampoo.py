"""A tiny Shampoo: an optimizer whose state is nested, some of it changed in place and some of it replaced."""

from __future__ import annotations

import torch


class Shampoo(torch.optim.Optimizer):
    """G L^(-1/2): the gradient G (C, -1), preconditioned by the root of L ← L + GGᵀ on one side, with momentum.

    Per parameter it keeps a dict of lists, a tuple, numbers and a history, as Shampoo and SOAP do.
    """

    def __init__(self, params, lr: float = 0.1, momentum: float = 0.9, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            group["counts"] = [0]

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["counts"][0] += 1  # a counter in a list of the group
            for p in group["params"]:
                if p.grad is None:
                    continue
                gradient = (p.grad + group["weight_decay"] * p).reshape(len(p), -1)
                state = self.state[p]
                if not state:
                    start = 0.1 * torch.eye(len(p), dtype=p.dtype, device=p.device)
                    state["count"] = 0
                    state["sides"] = {"gram": [start, start.clone()], "roots": (torch.zeros_like(start),)}
                    state["moments"] = [{"first": torch.zeros_like(gradient)}]
                    state["history"] = []
                state["count"] += 1
                state["history"].append(float(gradient.norm()))
                grams = state["sides"]["gram"]
                grams[0].add_(gradient @ gradient.T)  # in place
                grams[1] = 0.9 * grams[1] + gradient @ gradient.T  # replaced
                values, vectors = torch.linalg.eigh(grams[0] + grams[1])
                root = vectors @ torch.diag(values.rsqrt()) @ vectors.T
                state["sides"]["roots"][0].copy_(root)  # in a tuple
                moment = state["moments"][0]
                moment["first"] = group["momentum"] * moment["first"] + state["sides"]["roots"][0] @ gradient
                # numbers count too: what they leave behind is seen in the weights
                rate = group["lr"] / (
                    1 + 0.1 * state["count"] + 0.1 * group["counts"][0] + 0.1 * len(state["history"])
                )
                p.add_(moment["first"].view_as(p), alpha=-rate)
