//! Views of f32 buffers.

use crate::Error;
use crate::descriptor::Layout;

/// A tensor to read: a buffer, where in it the tensor starts, and its layout.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    pub(super) data: &'a [f32],
    pub(super) offset: usize,
    pub(super) layout: Layout,
}

impl<'a> Tensor<'a> {
    /// A tensor that starts at the buffer's first element.
    pub fn new(data: &'a [f32], layout: Layout) -> Self {
        Self::at(data, 0, layout)
    }

    /// A tensor that starts at element `offset`, as a part of a packed `qkv` does.
    pub fn at(data: &'a [f32], offset: usize, layout: Layout) -> Self {
        Self { data, offset, layout }
    }

    pub(super) fn check(&self, name: &str) -> Result<(), Error> {
        self.layout.check_bounds(name, self.offset, self.data.len())
    }

    /// The address of a head's first dimension. The view must have been checked, and must have elements.
    pub(super) fn row(&self, batch: usize, token: usize, head: usize) -> *const f32 {
        self.data.as_ptr().wrapping_add(self.offset).wrapping_offset(self.layout.row(batch, token, head))
    }
}

/// A tensor to write.
#[derive(Debug)]
pub struct TensorMut<'a> {
    data: &'a mut [f32],
    offset: usize,
    layout: Layout,
}

impl<'a> TensorMut<'a> {
    /// A tensor that starts at the buffer's first element.
    pub fn new(data: &'a mut [f32], layout: Layout) -> Self {
        Self::at(data, 0, layout)
    }

    /// A tensor that starts at element `offset`.
    pub fn at(data: &'a mut [f32], offset: usize, layout: Layout) -> Self {
        Self { data, offset, layout }
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    pub(super) fn check(&self, name: &str) -> Result<(), Error> {
        self.layout.check_bounds(name, self.offset, self.data.len())?;
        self.layout.check_distinct(name)
    }

    /// Hands the rows out to threads. The view must have been checked.
    pub(super) fn into_rows(self) -> RowsMut<'a> {
        RowsMut {
            first: self.data.as_mut_ptr().wrapping_add(self.offset),
            layout: self.layout,
            buffer: std::marker::PhantomData,
        }
    }
}

/// The rows of a checked output, shared between threads of which each writes rows of its own.
pub(super) struct RowsMut<'a> {
    first: *mut f32,
    layout: Layout,
    buffer: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer stands for an exclusive borrow of the buffer; `row` leaves it to the caller that no row is
// written by two threads.
unsafe impl Send for RowsMut<'_> {}
// SAFETY: as above.
unsafe impl Sync for RowsMut<'_> {}

impl RowsMut<'_> {
    /// The address of a head's first dimension.
    pub(super) fn row(&self, batch: usize, token: usize, head: usize) -> *mut f32 {
        self.first.wrapping_offset(self.layout.row(batch, token, head))
    }

    /// The step from one dimension of a head to the next, in elements.
    pub(super) fn dim_stride(&self) -> isize {
        self.layout.dim_stride()
    }
}
