"""How far each loss is from a slow second version, written from its formula in float64.

Largest relative error over random inputs and edge cases (a batch of one image, rows of zeros, a
temperature of 0.01, no or every image confident). Half-precision inputs are rounded for both.

    python -m benchmarks.loss_errors
"""

from __future__ import annotations

import torch

from tests.methods.slow import LOSSES

TYPES = (torch.float32, torch.float16, torch.bfloat16)


def main() -> None:
    print(f"{'largest relative error of':28}{'inputs':>6}", *(f"{str(t)[6:]:>10}" for t in TYPES))
    for name, loss in LOSSES.items():
        worst = [max(loss.error(case, dtype) for case in loss.inputs) for dtype in TYPES]
        print(f"{name:28}{len(loss.inputs):6}", *(f"{error:10.1e}" for error in worst))


if __name__ == "__main__":
    main()
