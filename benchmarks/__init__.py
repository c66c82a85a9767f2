"""What a broadcast costs here, and what it costs elsewhere: `python -m benchmarks --list`.

How it is measured. A rival is a small program in a process of its own, alone on the last core; the clients
are this process, alone on the first: raw asyncio protocols on uvloop that count messages and check their
order. A round with a delivery missing, doubled or out of order, a session lost, or a message that the
server itself says it dropped, is void, and told as such. All rivals of a scenario are up at once and are
measured for a moment each, in turn, over and over: what disturbs the machine disturbs all alike. So compare
within a run; `× first` is the median of the ratios of each round.

The figure of merit is the CPU that the server used for each delivery, as the operating system has it, user
and system. `server` and `generator` say which share of the time each of the two was working; `stolen` how
much of it the server was ready to work, but another program had its core.

One turn is on its way while the next is ordered, not more: so every delivery is written and read as one,
and a rival that is faster than the generator has to wait for it, instead of getting cheaper by clients that
read seldom. Only `raw` and `bun` come that far.
"""
