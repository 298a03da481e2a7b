import os,signal,time
from tests.test_init import *
from tests import launcher_harness as harness
probe = harness.probe
def test_x(probe):
    for round in range(6):
      with started(under_init(probe, "listen")) as process:
        read_until(output(process), b"ready\n")
        os.kill(process.pid, signal.SIGUSR1)
        read_until(output(process), b"10\n")
        log=[]
        t=time.monotonic()
        while time.monotonic()-t<1.0:
            s=(harness.switches(harness.status_of(process.pid)), harness.status_of(process.pid)["State"],open(f"/proc/{process.pid}/syscall").read()[:30])
            if not log or log[-1][1]!=s: log.append((round and 0, s, time.monotonic()-t))
        print(log)
