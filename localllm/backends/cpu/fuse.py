"""Peepholes over recorded nodes: what the native instructions do in one pass becomes one node."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from localllm.backends.cpu.nodes import Add, Attention, Head, Linear, Node, Pool, Rope, Sample, Scale, Softcap, Value
from localllm.errors import UnsupportedModel


def fuse(nodes: list[Node]) -> list[Node]:
    """The same computation in fewer nodes."""
    return fuse_head(fuse_ropes(fuse_residuals(nodes)))


def fuse_residuals(nodes: list[Node]) -> list[Node]:
    """linear, then add of its result: the product adds onto the residual itself."""
    uses = count_uses(nodes)
    fused: list[Node] = []
    for node in nodes:
        before = fused[-1] if fused else None
        if isinstance(node, Add) and isinstance(before, Linear) and _feeds(before, node, uses):
            fused[-1] = replace(before, out=node.out, residual=node.x, scale=node.scale)
        else:
            fused.append(node)
    return fused


def _feeds(linear: Linear, add: Add, uses: Counter[Value]) -> bool:
    return linear.residual is None and add.y is linear.out and add.x is not linear.out and uses[linear.out] == 1


def fuse_ropes(nodes: list[Node]) -> list[Node]:
    """Rotations of q and k that only an attention reads are done where it writes its pages."""
    uses = count_uses(nodes)
    ropes = {node.out: node for node in nodes if isinstance(node, Rope) and uses[node.out] == 1}
    gone: set[Value] = set()
    fused: list[Node] = []
    for node in nodes:
        if isinstance(node, Attention):
            q, k = ropes.get(node.q), None if node.k is None else ropes.get(node.k)
            if q is not None and k is not None and q.head_dim == k.head_dim == node.spec.head_dim:
                gone |= {q.out, k.out}
                node = replace(node, q=q.x, k=k.x, query_rope=q.spec, key_rope=k.spec)
            elif q is not None and node.k is None and q.head_dim == node.spec.head_dim:
                gone.add(q.out)
                node = replace(node, q=q.x, query_rope=q.spec)
        fused.append(node)
    return [node for node in fused if node.writes not in gone or not isinstance(node, Rope)]


def fuse_head(nodes: list[Node]) -> list[Node]:
    """The last product, its scale and its softcap, down to the largest logit; an encoder has none of them."""
    end = len(nodes) - 1
    last = nodes[end]
    if isinstance(last, Pool):
        return nodes
    if not isinstance(last, Sample):
        raise UnsupportedModel("the recorded model does not end in logits")
    softcap, scale, wanted = 0.0, 1.0, last.logits
    node = nodes[end - 1]
    if isinstance(node, Softcap) and node.out is wanted:
        softcap, wanted, end = node.cap, node.x, end - 1
        node = nodes[end - 1]
    if isinstance(node, Scale) and node.out is wanted:
        scale, wanted, end = node.factor, node.x, end - 1
        node = nodes[end - 1]
    if not isinstance(node, Linear) or node.out is not wanted or node.bias is not None or node.residual is not None:
        raise UnsupportedModel("logits that are no plain product have no native instruction yet")
    return [*nodes[: end - 1], Head(node.x, node.weight, scale, softcap)]


def count_uses(nodes: list[Node]) -> Counter[Value]:
    return Counter(value for node in nodes for value in node.reads)
