"""GoodWe for everyone without an account: six Kafka topics and the HTTPS API from one state.

The package shares no code with the service: it has its own reading of the profile, its own decoder and its own idea of
a device, otherwise both sides would share one bug and the tests would prove nothing.

    profile   the contract as data, read from profiles/*.toml
    fleet     which devices exist: generated from a seed, or read from a file
    inverter  physics and settings of all devices, numpy columns, no I/O
    consent   whitelist and end users' authorization over time
    faults    latency, loss, refusals: drawn per command from the seed, or scripted
    ledger    everything that was commanded, executed and answered: what an auditor compares with
    cloud     requests in, executed commands and results out; a state machine without I/O
    topics    the cloud on Kafka
    api       the seven interfaces over HTTP, and /sim/ to script all of it
"""
