//! Numbers that must agree to a stated bound.
//!
//! A bound is chosen from what the arithmetic allows and written at the call; it is never widened to make a test pass.
//! NaN or an infinity is never close to anything.

/// How far a value may lie from the one wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Bound {
    /// In the unit of the values.
    Absolute(f64),
    /// A fraction of the largest magnitude among the wanted values, for tensors whose elements share one rounding error.
    OfLargest(f64),
}

impl Bound {
    /// The largest difference allowed from `want`, in the unit of the values.
    fn absolute(self, want: &[impl Copy + Into<f64>]) -> f64 {
        match self {
            Self::Absolute(bound) => bound,
            Self::OfLargest(fraction) => {
                fraction * want.iter().map(|&w| w.into().abs()).fold(0.0, |largest: f64, w| largest.max(w))
            }
        }
    }
}

/// Fails unless every element of `got` lies within `bound` of its partner in `want`; names the worst one, both values
/// and the bound. `what` names the tensor in that message. Elements are f32, f64 or what turns into f64 without loss.
///
/// # Panics
/// If an element is out of bound or not finite, or if the two differ in length.
#[track_caller]
pub fn assert_close<G, W>(what: &str, got: &[G], want: &[W], bound: Bound)
where
    G: Copy + Into<f64>,
    W: Copy + Into<f64>,
{
    assert_eq!(got.len(), want.len(), "{what}: {} elements, want {}", got.len(), want.len());
    let allowed = bound.absolute(want);
    let Some((index, difference)) = worst(got, want) else { return };
    assert!(
        difference <= allowed,
        "{what}: element {index} of {} is {:?}, want {:?}: they differ by {difference:e}, allowed {allowed:e} ({bound:?})",
        got.len(),
        got[index].into(),
        want[index].into(),
    );
}

/// The largest difference between partners, 0 for nothing, infinity where one of them is not finite.
///
/// # Panics
/// If the two differ in length.
pub fn max_abs_difference<G: Copy + Into<f64>, W: Copy + Into<f64>>(got: &[G], want: &[W]) -> f64 {
    assert_eq!(got.len(), want.len(), "max_abs_difference: {} elements and {}", got.len(), want.len());
    worst(got, want).map_or(0.0, |(_, difference)| difference)
}

/// The mean of the differences between partners, 0 for nothing, infinity where one of them is not finite.
///
/// # Panics
/// If the two differ in length.
pub fn mean_abs_difference<G: Copy + Into<f64>, W: Copy + Into<f64>>(got: &[G], want: &[W]) -> f64 {
    assert_eq!(got.len(), want.len(), "mean_abs_difference: {} elements and {}", got.len(), want.len());
    got.iter().zip(want).map(|(&g, &w)| distance(g.into(), w.into())).sum::<f64>() / got.len().max(1) as f64
}

/// Index and size of the largest difference; the first of equals.
fn worst<G: Copy + Into<f64>, W: Copy + Into<f64>>(got: &[G], want: &[W]) -> Option<(usize, f64)> {
    let mut worst = None;
    for (index, (&g, &w)) in got.iter().zip(want).enumerate() {
        let difference = distance(g.into(), w.into());
        if worst.is_none_or(|(_, most)| difference > most) {
            worst = Some((index, difference));
        }
    }
    worst
}

fn distance(got: f64, want: f64) -> f64 {
    let difference = (got - want).abs();
    if difference.is_nan() { f64::INFINITY } else { difference }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_on_the_bound_are_close() {
        assert_close("x", &[1.0f32, 2.5], &[1.0f32, 2.0], Bound::Absolute(0.5));
        assert_close("x", &[1.0f32, 8.0], &[1.5f64, 8.0], Bound::OfLargest(0.0625));
        assert_close::<f32, f64>("nothing", &[], &[], Bound::Absolute(0.0));
    }

    #[test]
    #[should_panic(
        expected = "grad.w: element 2 of 3 is 2.0, want 4.0: they differ by 2e0, allowed 4e-1 (OfLargest(0.1))"
    )]
    fn the_worst_element_is_named_with_both_values_and_the_bound() {
        assert_close("grad.w", &[1.0f32, 2.5, 2.0], &[1.0f64, 2.0, 4.0], Bound::OfLargest(0.1));
    }

    #[test]
    #[should_panic(expected = "element 1 of 2 is NaN")]
    fn not_a_number_is_close_to_nothing_even_itself() {
        assert_close("x", &[0.0f32, f32::NAN], &[0.0f32, f32::NAN], Bound::Absolute(1e30));
    }

    #[test]
    #[should_panic(expected = "x: 1 elements, want 2")]
    fn a_missing_element_is_refused() {
        assert_close("x", &[0.0f32], &[0.0f32, 0.0], Bound::Absolute(1.0));
    }

    #[test]
    fn differences_are_reported_as_numbers() {
        assert_eq!(max_abs_difference(&[1.0f32, 2.0], &[1.5f64, 4.0]), 2.0);
        assert_eq!(mean_abs_difference(&[1.0f32, 2.0], &[1.5f64, 4.0]), 1.25);
        assert_eq!(max_abs_difference(&[f64::INFINITY], &[f64::INFINITY]), f64::INFINITY);
    }
}
