"""Asks every worker behind a headless Service whether it is ready: `ready.py NAME [PORT]`. Exit code 1 = one is not."""

import socket
import sys
import urllib.error
import urllib.request

name, port = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8000
try:
    addresses = sorted({str(found[4][0]) for found in socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)})
except socket.gaierror:
    addresses = []
if not addresses:
    sys.exit(f"{name} names no worker: look at the StatefulSet.")
bad = 0
for address in addresses:
    host = f"[{address}]" if ":" in address else address
    try:
        with urllib.request.urlopen(f"http://{host}:{port}/readyz", timeout=10) as answer:
            print(f"{address} is ready: {answer.status}")
    except urllib.error.HTTPError as fault:
        bad += 1
        print(f"{address} is not ready: {fault.read().decode().strip()}")
    except OSError as fault:
        bad += 1
        print(f"{address} does not answer: {fault}")
sys.exit(1 if bad else 0)
