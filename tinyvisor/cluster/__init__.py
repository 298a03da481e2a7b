"""Batches over many machines, on the workers of a Dask cluster. `distributed` is imported where a cluster is used."""

from tinyvisor.cluster.client import Cluster, SchedulerLost

__all__ = ("Cluster", "SchedulerLost")
