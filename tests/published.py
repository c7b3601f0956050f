"""The published methods as loops over one sample, straight from their papers.

Each says which token goes into which, and by what weights; `oracle.merge_into` does the rest. A token is a list of
numbers, keys and queries are one such list a head.
"""

import math
from typing import NamedTuple

import oracle


class Sample(NamedTuple):
    """What a merge step is given of one sample."""

    x: list
    keys: list
    queries: list
    sizes: list
    prefix: int
    scale: float


class Step(NamedTuple):
    """Where each removed token goes, the weights of all tokens, and whether a merged token gets the largest norm."""

    going: dict[int, int]
    weights: list
    largest_norm: bool = False


def cosine(a, b) -> float:
    return oracle.dot(a, b) / math.sqrt(oracle.dot(a, a) * oracle.dot(b, b))


def mean(vectors):
    return [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def mean_keys(sample: Sample):
    return [mean([head[n] for head in sample.keys]) for n in range(len(sample.x))]


def attention(sample: Sample):
    """How query i attends to key j, mean over heads; a key counts by the size of its token."""
    n = range(len(sample.x))
    heads = []
    for keys, queries in zip(sample.keys, sample.queries, strict=True):
        rows = [[sample.sizes[j] * math.exp(sample.scale * oracle.dot(queries[i], keys[j])) for j in n] for i in n]
        heads.append([[value / sum(row) for value in row] for row in rows])
    return [mean([head[i] for head in heads]) for i in n]


def tome(sample: Sample, r: int) -> Step:
    targets, _ = oracle.partition(len(sample.x), sample.prefix)
    similarities = oracle.cosine_similarities(mean_keys(sample), sample.prefix)
    nearest = {s: targets[row.index(max(row))] for s, row in similarities.items()}
    return Step({s: nearest[s] for s in oracle.removed(similarities, None, r)}, sample.sizes)


def pitome(sample: Sample, r: int, block: int, depth: int) -> Step:
    keys, margin = mean_keys(sample), 0.9 - 0.9 * block / depth
    by_energy = _by_energy(sample, lambda cos: cos - margin if cos >= margin else math.exp(cos - margin) - 1)
    if block >= math.ceil(depth / 2):
        by_energy = by_energy[: 2 * r]
    a, b = by_energy[0::2], by_energy[1::2]
    nearest = {i: max(b, key=lambda j: cosine(keys[i], keys[j])) for i in a}
    closest = sorted(a, key=lambda i: -cosine(keys[i], keys[nearest[i]]))[:r]
    return Step({i: nearest[i] for i in closest}, sample.sizes)


def _by_energy(sample: Sample, f) -> list[int]:
    """The patch tokens, those that are like many others first."""
    keys, patches = mean_keys(sample), range(sample.prefix, len(sample.x))
    energy = {i: sum(f(cosine(keys[i], keys[j])) for j in patches) / len(patches) for i in patches}
    return sorted(patches, key=lambda i: -energy[i])


def tofu(sample: Sample, r: int, block: int, depth: int) -> Step:
    going = tome(sample, r).going
    if block < depth // 2:
        return Step(going, [float(n not in going) for n in range(len(sample.x))])
    return Step(going, sample.sizes, largest_norm=True)


def mctf(sample: Sample, r: int) -> Step:
    attended, size = mean(attention(sample)), sample.sizes
    others, ones = oracle.partition(len(sample.x), sample.prefix)

    def attraction(i, j):
        alike = (cosine(sample.x[i], sample.x[j]) + 1) / 2
        return alike * (1 / attended[i] / attended[j]) ** (1 / 20) * (1 / size[i] / size[j]) ** (1 / 40)

    def fuse(sources, targets, number):
        """The closest of the sources, each into the nearest of the targets, with all that it holds."""
        best = {i: max(targets, key=lambda j: attraction(i, j)) for i in sources}
        for i in sorted(sources, key=lambda i: -attraction(i, best[i]))[:number]:
            groups[best[i]] += groups.pop(i)

    groups = {n: [n] for n in range(len(sample.x))}
    fuse(ones, others, r // 2)
    fuse(others, [i for i in ones if i in groups], r - r // 2)
    going = {n: target for target, parts in groups.items() for n in parts if n != target}
    return Step(going, [a * s for a, s in zip(attended, size, strict=True)])


def atc(sample: Sample, r: int) -> Step:
    keys = mean_keys(sample)
    clusters = [[n] for n in range(sample.prefix, len(sample.x))]

    def distance(pair):
        one, other = (clusters[i] for i in pair)
        return sum(1 - cosine(keys[i], keys[j]) for i in one for j in other) / len(one) / len(other)

    for _ in range(r):
        i, j = min(((i, j) for j in range(len(clusters)) for i in range(j)), key=distance)
        clusters[i] += clusters.pop(j)
    return Step({n: min(cluster) for cluster in clusters for n in cluster if n != min(cluster)}, sample.sizes)


def evit(sample: Sample, r: int) -> Step:
    attended = attention(sample)[0]
    *sources, target = sorted(range(sample.prefix, len(sample.x)), key=lambda n: attended[n])[: r + 1]
    return Step(dict.fromkeys(sources, target), attended)
