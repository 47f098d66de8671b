"""How likely data are under a model, in bits per dimension: bounds and exact values.

Three of them, each for any denoiser:

    vlb                 the variational bound of a chain of steps, in its three parts
    vdm_bound           the bound in continuous time
    ode_bits_per_dim    the probability-flow ODE's density of dequantised data
"""

from diffjax.likelihood.bits import Summary, bits_per_dim, summarise
from diffjax.likelihood.dequantisation import truncated_normal, uniform, variational
from diffjax.likelihood.discretised import discretised_gaussian_log_prob
from diffjax.likelihood.ode import OdeSolver, ode_bits_per_dim, ode_log_likelihood
from diffjax.likelihood.vdm import vdm_bound
from diffjax.likelihood.vlb import vlb

__all__ = [
    "OdeSolver",
    "Summary",
    "bits_per_dim",
    "discretised_gaussian_log_prob",
    "ode_bits_per_dim",
    "ode_log_likelihood",
    "summarise",
    "truncated_normal",
    "uniform",
    "variational",
    "vdm_bound",
    "vlb",
]
