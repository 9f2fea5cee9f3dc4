"""`street`: an embedded benchmark of procedurally drawn street scenes in two looks. Nothing is downloaded."""

from .dataset import NAMES, PALETTE, street

__all__ = ["NAMES", "PALETTE", "street"]
