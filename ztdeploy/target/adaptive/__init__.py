"""Adaptive inference: what a bundle runs is decided while it runs, by the image at hand or by the load of the machine.

A **cascade** runs its cheapest stage on every image, and later ones where that is not confident. `calibrate` chooses
its thresholds, `guarantee` has the statistics, `pieces` what graphs are cut into, and `cascade` the runner.

A **governor** holds a latency: it chooses among a bundle's variants from the latencies that it measures.
`governor` has its settings and decisions, `ladder` the variants it may choose, `control` the rule, `conditions` what
it reads of the machine besides latency, and `governed` the runner. `opening` has `ztdeploy.load`.
"""
