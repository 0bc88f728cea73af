//! Statistics of values, on the CPU.

use super::*;

pub(super) fn survey(queue: &Queue, a: SurveyArgs<&Tensor>) -> Done {
    const K: &str = "survey";
    float!(K, a.x.dtype(), T => {
        kernels::survey::survey::<T>(cpu(queue), &input(K, a.x), a.tiny, &mut output(K, a.out))
    });
    Ok(())
}

pub(super) fn distance(queue: &Queue, a: DistanceArgs<&Tensor>) -> Done {
    const K: &str = "distance";
    float!(K, a.x.dtype(), T => {
        kernels::survey::distance::<T>(cpu(queue), &input(K, a.x), &input(K, a.y), &mut output(K, a.out))
    });
    Ok(())
}
