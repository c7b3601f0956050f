"""Experiments that set merge methods side by side on one model, by name."""

from mame_lab.benchmarks.settings import Benchmark, Budgets, Denoiser, Frontier, GridAttention, Recovery, Throughput

BENCHMARKS: dict[str, type[Benchmark]] = {
    "frontier": Frontier,
    "throughput": Throughput,
    "budgets": Budgets,
    "recovery": Recovery,
    "denoiser": Denoiser,
    "grid_attention": GridAttention,
}
