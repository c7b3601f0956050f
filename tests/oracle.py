"""MaMe and MaRe as loops over one sample, straight from the steps of the paper: the oracle of the matrix code."""

import math


def partition(tokens: int, prefix: int) -> tuple[list[int], list[int]]:
    patches = list(range(prefix, tokens))
    return patches[0::2], patches[1::2]


def cosine(a, b) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def paper_column(similarities: list[float], tau: float, tolerance: float = 1e-4) -> list[float]:
    """The weights of one source over all targets."""
    weights = [max(s - tau, 0.0) for s in similarities]
    if sum(weights) == 0:
        return weights
    weights = [w / sum(weights) for w in weights]
    nonzero = [w for w in weights if w > 0]
    mean = sum(nonzero) / len(nonzero)
    weights = [max(w - (1 - tolerance) * mean, 0.0) for w in weights]
    return [w / sum(weights) for w in weights]


def columns(x: list[list[float]], prefix: int, tau: float | None, r: int | None) -> dict[int, list[float]]:
    """For each source that merges, by its index: its weights over the targets."""
    targets, sources = partition(len(x), prefix)
    found = {}
    for s in sources:
        similarities = [cosine(x[t], x[s]) for t in targets]
        best = similarities.index(max(similarities))
        one_hot = [float(i == best) for i in range(len(targets))]
        column = one_hot if tau is None else paper_column(similarities, tau)
        if r is not None and sum(column) == 0:
            column = one_hot
        found[s] = (max(similarities), column)
    if r is None:
        return {s: column for s, (_, column) in found.items() if sum(column) > 0}
    by_closeness = sorted(sources, key=lambda s: (-found[s][0], s))
    return {s: found[s][1] for s in by_closeness[:r]}


def merge(x, sizes, prefix, tau=None, r=None):
    """Tokens, sizes and original positions that remain, in the order of the original positions."""
    targets, _ = partition(len(x), prefix)
    leaving = columns(x, prefix, tau, r)
    merged, merged_sizes = {n: list(row) for n, row in enumerate(x)}, dict(enumerate(sizes))
    for i, t in enumerate(targets):
        total = sizes[t] + sum(w[i] * sizes[s] for s, w in leaving.items())
        for c in range(len(x[t])):
            weighted = sizes[t] * x[t][c] + sum(w[i] * sizes[s] * x[s][c] for s, w in leaving.items())
            merged[t][c] = weighted / total
        merged_sizes[t] = total
    stays = [n for n in range(len(x)) if n not in leaving]
    return [merged[n] for n in stays], [merged_sizes[n] for n in stays], stays


def restore(merged, stays, x, prefix, tau=None, r=None):
    """The full sequence from the merged one."""
    targets, _ = partition(len(x), prefix)
    leaving = columns(x, prefix, tau, r)
    value = dict(zip(stays, merged, strict=True))
    channels = range(len(merged[0]))
    return [
        value[n]
        if n in value
        else [sum(w * value[t][c] for w, t in zip(leaving[n], targets, strict=True)) for c in channels]
        for n in range(len(x))
    ]
