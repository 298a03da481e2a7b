"""Batches over many machines, on the workers of a Dask cluster: `client.Cluster`, which `Runtime.map` and ``--cluster`` use.

`distributed` is imported where a cluster is used. On each worker (`worker`) containers run in a process of their own (`node`),
which knows nothing of Dask; `dispatch` says which node gets which job, and `frames` what is sent.
"""
