"""Every solver on a Gaussian mixture whose ODE is solved to rounding, and next to its peers.

    python -m benchmarks.samplers

writes benchmarks/samplers.md and benchmarks/samplers.png: orders and errors, the largest difference
to diffusers' and k-diffusion's solvers, memory and compile time of 1,000 steps against 10. Peers
are measured where they are installed: `pip install diffusers torch` and
`pip install --no-deps k-diffusion`.
"""
