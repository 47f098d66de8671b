"""How likely data are under a model, in bits per dimension: bounds and exact values.

Three of them, each for any denoiser:

    vlb                 the variational bound of a chain of steps, in its three parts
    vdm_bound           the bound in continuous time
    ode_bits_per_dim    the probability-flow ODE's density of dequantised data

and the exact one of an autoregressive model with logistic mixtures, `image_bits_per_dim`.
"""

from diffjax.likelihood.bits import Summary, bits_per_dim, summarise
from diffjax.likelihood.dequantisation import truncated_normal, uniform, variational
from diffjax.likelihood.discretised import discretised_gaussian_log_prob
from diffjax.likelihood.logistic_mixture import (
    LogisticMixture,
    discretised_logistic_log_prob,
    image_bits_per_dim,
    logistic_mixture_log_prob,
    mixture_from_outputs,
    number_of_outputs,
    sample_logistic_mixture,
)
from diffjax.likelihood.ode import OdeSolver, ode_bits_per_dim, ode_log_likelihood
from diffjax.likelihood.vdm import vdm_bound
from diffjax.likelihood.vlb import vlb

__all__ = [
    "LogisticMixture",
    "OdeSolver",
    "Summary",
    "bits_per_dim",
    "discretised_gaussian_log_prob",
    "discretised_logistic_log_prob",
    "image_bits_per_dim",
    "logistic_mixture_log_prob",
    "mixture_from_outputs",
    "number_of_outputs",
    "ode_bits_per_dim",
    "ode_log_likelihood",
    "sample_logistic_mixture",
    "summarise",
    "truncated_normal",
    "uniform",
    "variational",
    "vdm_bound",
    "vlb",
]
