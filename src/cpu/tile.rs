//! Products of small tiles.

use gemm::Parallelism;

/// A matrix in memory: its first element and the steps to the next row and column, in elements.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    pub(super) first: *const f32,
    pub(super) row_step: isize,
    pub(super) column_step: isize,
}

/// `out = a * b`, or `out += a * b` if `accumulate`, on the calling thread, for `a` of `rows x inner` and `b` of `inner x columns`; `out` is
/// row-major with `out_row_step` elements from row to row.
///
/// # Safety
/// `a` and `b` must be readable over their whole shape, and `out` must not overlap them.
pub(super) unsafe fn multiply(
    [rows, columns, inner]: [usize; 3],
    a: Matrix,
    b: Matrix,
    out: &mut [f32],
    out_row_step: usize,
    accumulate: bool,
) {
    debug_assert!(rows == 0 || out.len() >= (rows - 1) * out_row_step + columns);
    // SAFETY: the shapes and steps of `a` and `b` are the caller's promise, those of `out` are asserted above.
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            out_row_step as isize,
            accumulate,
            a.first,
            a.column_step,
            a.row_step,
            b.first,
            b.column_step,
            b.row_step,
            1.0,
            1.0,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
