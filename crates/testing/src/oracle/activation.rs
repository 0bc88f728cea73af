//! The nonlinearities and their slopes, one number at a time.
//!
//! Source: Hendrycks & Gimpel 2016, arXiv:1606.08415 (GELU, its tanh form and SiLU).

use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};

use super::config::Activation;

impl Activation {
    /// `(f(x), f'(x))`.
    pub fn value_and_slope(self, x: f64) -> (f64, f64) {
        match self {
            Self::GeluTanh => {
                let tanh = ((2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh();
                let inner_slope = (2.0 / PI).sqrt() * (1.0 + 3.0 * 0.044715 * x * x);
                (0.5 * x * (1.0 + tanh), 0.5 * (1.0 + tanh) + 0.5 * x * (1.0 - tanh * tanh) * inner_slope)
            }
            Self::GeluErf => {
                let phi = 0.5 * (1.0 + erf(x * FRAC_1_SQRT_2));
                let density = (-0.5 * x * x).exp() / (2.0 * PI).sqrt();
                (x * phi, phi + x * density)
            }
            Self::Silu => {
                let sigmoid = 1.0 / (1.0 + (-x).exp());
                (x * sigmoid, sigmoid * (1.0 + x * (1.0 - sigmoid)))
            }
        }
    }
}

/// The error function to about 1e-15 absolute: `2/sqrt(pi) e^{-x^2} sum_n 2^n x^{2n+1} / (2n+1)!!`.
///
/// All terms have one sign, so nothing cancels. Source: Abramowitz & Stegun, 7.1.6.
pub fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-17 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    FRAC_2_SQRT_PI * (-x * x).exp() * sum
}
