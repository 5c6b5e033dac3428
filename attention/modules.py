"""nn.MultiheadAttention with dci_attention inside."""

import math
from functools import partial

import torch
from torch import Tensor, nn

from ._core.multi_head import multi_head_attention
from ._core.validation import check_settings
from .errors import InvalidTypeError, InvalidValueError, UnsupportedError
from .functional import dci_attention
from .options import AttentionOptions


class DCIAttention(nn.MultiheadAttention):
    """Multi-head attention that reads only the keys which matter.

    Constructor, state dict and forward are those of `torch.nn.MultiheadAttention`; weights are never
    built, so that ``need_weights`` is False unless asked for, and then an error.  For inference: call
    it under ``torch.no_grad()``, and after ``eval()`` if it has dropout.

    Parameters
    ----------
    embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype
        As for `torch.nn.MultiheadAttention`.
    options : AttentionOptions, optional
        How `dci_attention` computes; not part of the state dict.

    Examples
    --------
    >>> import torch, attention
    >>> layer = attention.DCIAttention(64, 4, batch_first=True).eval()
    >>> x = torch.randn(2, 100, 64)
    >>> with torch.no_grad():
    ...     output, weights = layer(x, x, x)
    >>> output.shape, weights
    (torch.Size([2, 100, 64]), None)
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        options: AttentionOptions | None = None,
    ) -> None:
        if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:  # an AssertionError in PyTorch
            raise InvalidValueError(
                f"embed_dim and num_heads: expected the first to be a multiple of the second, received {embed_dim} "
                f"and {num_heads}"
            )
        super().__init__(
            embed_dim, num_heads, dropout, bias, add_bias_kv, add_zero_attn, kdim, vdim, batch_first, device, dtype
        )
        check_settings(0.0, None, options)
        self.options = options

    @classmethod
    def from_torch(cls, module: nn.MultiheadAttention, options: AttentionOptions | None = None) -> "DCIAttention":
        """Make one of a torch module.

        Parameters
        ----------
        module : nn.MultiheadAttention
        options : AttentionOptions, optional

        Returns
        -------
        DCIAttention
            Its parameters are the module's own, not copies: what changes one changes both.

        Raises
        ------
        InvalidTypeError
            If `module` is not a nn.MultiheadAttention.

        Examples
        --------
        >>> import torch, attention
        >>> layer = torch.nn.MultiheadAttention(64, 4)
        >>> attention.DCIAttention.from_torch(layer).in_proj_weight is layer.in_proj_weight
        True
        """
        if not isinstance(module, nn.MultiheadAttention):
            raise InvalidTypeError(f"module: expected a nn.MultiheadAttention, received {type(module).__name__}")
        made = cls(
            module.embed_dim,
            module.num_heads,
            dropout=module.dropout,
            bias=module.in_proj_bias is not None,
            add_bias_kv=module.bias_k is not None,
            add_zero_attn=module.add_zero_attn,
            kdim=module.kdim,
            vdim=module.vdim,
            batch_first=module.batch_first,
            device="meta",  # nothing is allocated or drawn: every parameter is replaced below
            options=options,
        )
        made.load_state_dict(module.state_dict(keep_vars=True), assign=True)
        return made.train(module.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, None]:
        """Attend, with the arguments of `torch.nn.MultiheadAttention`.

        Parameters
        ----------
        query : Tensor of shape (L, N, E), (N, L, E) with batch_first, or (L, E)
        key, value : Tensor of shape (S, N, …), (N, S, …) with batch_first, or (S, …)
        key_padding_mask : Tensor of shape (N, S) or (S,), optional
            True: the key is padding.
        need_weights : bool
            Must be False.
        attn_mask : Tensor of shape (L, S) or (N·num_heads, L, S), optional
            True: do not attend; or a float mask that is added.
        average_attn_weights : bool
            Without a meaning, there are no weights.
        is_causal : bool
            Query i sees no key behind key i: `attn_mask` is the causal mask, or left out.

        Returns
        -------
        output : Tensor of the query's shape
        weights : None

        Raises
        ------
        UnsupportedError
            With ``need_weights=True``.
        InvalidValueError
            Shapes do not fit.  And whatever `dci_attention` raises.
        """
        if need_weights:
            raise UnsupportedError("need_weights: expected False, the weights are never built, received True")
        swapped = self.batch_first and query.dim() == key.dim() == value.dim() == 3
        if swapped:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        self._check(query, key, value, key_padding_mask, attn_mask)
        output = multi_head_attention(
            partial(dci_attention, options=self.options),
            query,
            key,
            value,
            num_heads=self.num_heads,
            in_proj_weight=self.in_proj_weight,
            q_proj_weight=self.q_proj_weight,
            k_proj_weight=self.k_proj_weight,
            v_proj_weight=self.v_proj_weight,
            in_proj_bias=self.in_proj_bias,
            out_proj_weight=self.out_proj.weight,
            out_proj_bias=self.out_proj.bias,
            bias_k=self.bias_k,
            bias_v=self.bias_v,
            add_zero_attn=self.add_zero_attn,
            key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
            is_causal=is_causal,
            dropout_p=self.dropout,
            training=self.training,
        )
        return output.transpose(0, 1) if swapped else output, None

    def _check(
        self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Tensor | None, attn_mask: Tensor | None
    ) -> None:
        """Raise unless the shapes fit; lengths come first, as torch has them inside."""
        shapes = [tuple(x.shape) for x in (query, key, value)]
        n_keys, length = shapes[1][0], shapes[0][0]
        batch = shapes[0][1:-1]
        fits = (
            len(shapes[0]) in (2, 3)
            and tuple(shape[-1] for shape in shapes) == (self.embed_dim, self.kdim, self.vdim)
            and all(shape[1:-1] == batch for shape in shapes)
            and shapes[2][0] == n_keys
        )
        if not fits:
            raise InvalidValueError(
                f"query, key and value: expected (L, {self.embed_dim}), (S, {self.kdim}) and (S, {self.vdim}), or with "
                f"a batch's axis as well, received {', '.join(map(str, shapes))} (lengths first)"
            )
        n_heads = self.num_heads * math.prod(batch)
        masks = (
            ("key_padding_mask", key_padding_mask, [(*batch, n_keys)]),
            ("attn_mask", attn_mask, [(length, n_keys), (n_heads, length, n_keys)]),
        )
        for name, mask, expected in masks:
            if mask is not None and tuple(mask.shape) not in expected:
                wanted = " or ".join(map(str, expected))
                raise InvalidValueError(f"{name}: expected the shape {wanted}, received {tuple(mask.shape)}")
