"""Makes `import torchvision` work beside a torch build it was not compiled for.

torchvision's wheel on the package index is a CUDA build. Beside a CPU build of torch its compiled operators do not
load, and the import dies registering fake kernels for operators that are then unknown ("operator torchvision::nms does
not exist"). Models, transforms and data sets use none of them. Declaring their schemas is enough for the import.
"""

from __future__ import annotations

import sys


def ensure_torchvision() -> None:
    """Import torchvision, declaring its missing operators if, and only if, the plain import fails for want of them.

    Raises:
        RuntimeError: torchvision fails to import for another reason.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
    else:
        return
    import torch

    # The library must outlive this function: its operators vanish with it.
    global _schemas  # noqa: PLW0603
    _schemas = torch.library.Library("torchvision", "FRAGMENT")
    _schemas.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _schemas.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    import torchvision  # noqa: F401


_schemas: object = None
