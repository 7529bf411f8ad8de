//! The device code that `build.rs` compiled and this library carries.

/// The driver reads an image in words.
#[repr(C, align(64))]
#[cfg_attr(no_device_code, expect(dead_code, reason = "a build without nvcc has no image to wrap"))]
struct Aligned<const N: usize>([u8; N]);

/// Each family's name and fat binary; empty if the build found no compiler.
static IMAGES: &[(&str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/images.rs"));

/// Whether this library was built with its device code.
pub fn is_embedded() -> bool {
    !IMAGES.is_empty()
}

/// The image of a family.
pub(super) fn image(family: &str) -> Option<&'static [u8]> {
    IMAGES.iter().find(|(name, _)| *name == family).map(|(_, image)| *image)
}
