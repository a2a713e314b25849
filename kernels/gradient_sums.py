"""Sums and scaled copies of gradients without temporaries of their size.

V vocabulary, H hidden, n rows of a chunk.
"""

import torch
from torch import Tensor


def scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """gradient * factor in `dtype`, in one pass: in place, or while it is cast."""
    if gradient.dtype == dtype:
        return gradient.mul_(factor)
    return torch.mul(gradient, factor, out=gradient.new_empty(gradient.shape, dtype=dtype))


def add_product(product_dtype: torch.dtype, sum_VH: Tensor, left_Vn: Tensor, right_nH: Tensor) -> None:
    """sum [V, H] += left [V, n] @ right [n, H], without a temporary of that size if the dtypes allow it.

    product_dtype: in which the operands are multiplied; the result is added in the dtype of the sum.
    """
    with torch.autocast(left_Vn.device.type, enabled=False):
        if product_dtype == sum_VH.dtype:
            sum_VH.addmm_(left_Vn, right_nH.to(product_dtype))
            return
        left, right = left_Vn.to(product_dtype), right_nH.to(product_dtype)
        if left.is_cuda:
            torch.addmm(sum_VH, left, right, out_dtype=sum_VH.dtype, out=sum_VH)
        else:
            sum_VH += torch.mm(left, right).to(sum_VH.dtype)
