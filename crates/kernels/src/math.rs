//! Elementary functions in f32 that vectorise: no branches, no tables, no fused operations, so that loops over them
//! give the same bits on every instruction set, and on every machine (the system's math library does not).
//!
//! Each doc states the largest error over the whole range in units in the last place (ulp) of the exact result, as the
//! tests measure it against f64. The polynomials are minimax fits of the relative error, made for this file.

/// 1.5 * 2^23: adding it to a float below 2^22 rounds to the nearest integer, which the low mantissa bits then hold.
const ROUND: f32 = 12_582_912.0;

/// ln 2 in two parts; the first has 15 bits, so that its product with an exponent is exact.
const LN_2_HIGH: f32 = 0.693_145_75;
const LN_2_LOW: f32 = 1.428_606_8e-6;

/// `p[0] + p[1] z + p[2] z^2 + ...`
#[inline(always)]
fn polynomial<const N: usize>(z: f32, p: [f32; N]) -> f32 {
    let mut value = p[N - 1];
    for i in (0..N - 1).rev() {
        value = value * z + p[i];
    }
    value
}

/// `e^x`, within 1.1 ulp (1 smallest number where the result is subnormal). Minus infinity gives 0, overflow gives
/// infinity, NaN stays NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Beyond these the result is 0 or infinity; within them the exponent below cannot overflow. NaN passes.
    let x = x.clamp(-110.0, 90.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2_HIGH) - n * LN_2_LOW;
    let p = polynomial(r, [0.499_999_94, 0.166_665_2, 0.041_668_393, 0.008_368_772, 0.001_381_458_8]);
    let value = 1.0 + (r + r * r * p);
    // 2^n in two factors: n reaches from -159 to 130, one factor's exponent from -126 to 127.
    let n = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = n >> 1;
    value * power_of_two(half) * power_of_two(n - half)
}

/// `2^n` for n from -126 to 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// Natural logarithm, within 1 ulp, of a normal positive number. Infinity gives infinity, zero and subnormal numbers
/// give a value below -87, negative numbers and NaN give NaN.
#[inline(always)]
pub fn ln(x: f32) -> f32 {
    const SQRT_HALF_BITS: u32 = 0x3f35_04f3;
    // x = m 2^n with m from sqrt(1/2) to sqrt(2), so that the logarithm of m has no cancellation with n ln 2 near 1.
    let bits = x.to_bits().wrapping_sub(SQRT_HALF_BITS);
    let n = (bits as i32 >> 23) as f32;
    let f = f32::from_bits((bits & 0x007f_ffff) + SQRT_HALF_BITS) - 1.0;
    let s = f / (2.0 + f);
    let z = s * s;
    let r = z * polynomial(z, [0.666_666_6, 0.400_003_34, 0.285_373_42, 0.235_815_58]);
    // ln(1 + f) = f - f^2/2 + s (f^2/2 + r): the exact f carries the leading bits.
    let h = 0.5 * f * f;
    let value = n * LN_2_HIGH - ((h - (s * (h + r) + n * LN_2_LOW)) - f);
    let finite = if x >= 0.0 { value } else { f32::NAN };
    if x == f32::INFINITY { x } else { finite }
}

/// Hyperbolic tangent, within 2 ulp. NaN stays NaN.
#[inline(always)]
pub fn tanh(x: f32) -> f32 {
    let z = x * x;
    let near = x + x * z * polynomial(z, [-0.333_333, 0.133_319_26, -0.053_783_96, 0.020_796_452, -0.005_895_763]);
    let far = 1.0 - 2.0 / (exp(2.0 * x.abs()) + 1.0);
    if x.abs() < 0.6 { near } else { far.copysign(x) }
}

/// Error function, within 2 ulp. NaN stays NaN.
#[inline(always)]
pub fn erf(x: f32) -> f32 {
    // Near 0: erf(x) / x - 1. Farther out: the logarithm of 1 - erf. From 4 on the result is 1.
    const NEAR: [f32; 7] =
        [0.128_379_17, -0.376_126_26, 0.112_835_86, -0.026_853_856, 0.005_188_414, -0.000_801_097_9, 7.856_55e-5];
    const FAR: [f32; 7] = [
        -0.000_354_774_6,
        -1.127_035_4,
        -0.638_234_26,
        -0.103_029_17,
        0.021_800_997,
        -0.002_938_420_5,
        0.000_185_441_52,
    ];
    let near = x + x * polynomial(x * x, NEAR);
    let far = 1.0 - exp(polynomial(x.abs().clamp(0.0, 4.0), FAR));
    if x.abs() < 1.0 { near } else { far.copysign(x) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The largest error in ulp over floats spread evenly over their bit patterns, and where it is.
    fn worst(f: fn(f32) -> f32, exact: impl Fn(f64) -> f64, low: f32, high: f32) -> (f64, f32) {
        let mut worst = (0.0, 0.0);
        for bits in (0..=u32::MAX).step_by(509) {
            let x = f32::from_bits(bits);
            if !(low..=high).contains(&x) {
                continue;
            }
            let want = exact(f64::from(x));
            let rounded = (want as f32).abs();
            let ulp = f64::from(rounded.next_up()) - f64::from(rounded);
            let error = (f64::from(f(x)) - want).abs() / ulp;
            if error > worst.0 {
                worst = (error, x);
            }
        }
        worst
    }

    #[test]
    fn exp_is_within_1_1_ulp() {
        let (ulp, x) = worst(exp, f64::exp, -87.0, 88.7);
        assert!(ulp <= 1.1, "{ulp} ulp at {x:e}");
        let (ulp, x) = worst(exp, f64::exp, -103.0, -87.0);
        assert!(ulp <= 1.1, "subnormal results: {ulp} ulp at {x:e}");
    }

    #[test]
    fn exp_saturates_and_keeps_nan() {
        assert_eq!(exp(f32::NEG_INFINITY).to_bits(), 0);
        assert_eq!(exp(f32::MIN).to_bits(), 0);
        assert_eq!(exp(89.0), f32::INFINITY);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn ln_is_within_1_ulp_and_knows_its_edges() {
        let (ulp, x) = worst(ln, f64::ln, f32::MIN_POSITIVE, f32::MAX);
        assert!(ulp <= 1.0, "{ulp} ulp at {x:e}");
        assert_eq!(ln(1.0), 0.0);
        assert_eq!(ln(f32::INFINITY), f32::INFINITY);
        assert!(ln(0.0) < -87.0);
        assert!(ln(-1.0).is_nan() && ln(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_within_2_ulp_and_saturates() {
        let (ulp, x) = worst(tanh, f64::tanh, f32::MIN, f32::MAX);
        assert!(ulp <= 2.0, "{ulp} ulp at {x:e}");
        assert_eq!((tanh(f32::INFINITY), tanh(-30.0)), (1.0, -1.0));
        assert!(tanh(f32::NAN).is_nan());
    }

    #[test]
    fn erf_is_within_2_ulp_and_saturates() {
        let (ulp, x) = worst(erf, crate::testing::erf, f32::MIN, f32::MAX);
        assert!(ulp <= 2.0, "{ulp} ulp at {x:e}");
        assert_eq!((erf(f32::INFINITY), erf(-4.0)), (1.0, -1.0));
        assert!(erf(f32::NAN).is_nan());
    }
}
