//! Kernels that move whole rows.

use super::*;

pub(super) fn scatter_rows(queue: &Queue, a: ScatterRowsArgs<&Tensor>) -> Done {
    const K: &str = "scatter_rows";
    float!(K, a.out.dtype(), T => kernels::scatter_rows::scatter_rows::<T>(
        cpu(queue), a.x.map(|x| input(K, x)).as_deref(), &input(K, a.rows), a.out.shape().width(), &mut output(K, a.out),
    ));
    Ok(())
}
