//! The kernels, ready to launch.

use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::thread::ScopedJoinHandle;

use cudarc::driver::sys;

use crate::device::driver::{self, DeviceError, Stream, check};
use crate::device::image;
use crate::device::primary::Primary;

/// The images of this library, loaded once. Share it freely between threads.
///
/// It belongs to no CUDA context: a launch runs in the context of its stream, or, on a default stream, in the current one; where
/// the thread has none, in the primary one of the device, if that is in use. The slow work is done in [`Context::new`], so that launches neither allocate nor wait and can be captured
/// in a graph. Make it while the context that is to be used is current: its code is loaded then, and not by a first launch.
pub struct Context {
    device: sys::CUdevice,
    libraries: Vec<sys::CUlibrary>,
    kernels: HashMap<&'static str, Kernel>,
    multiprocessors: u32,
}

/// A kernel that was found.
#[derive(Debug, Clone, Copy)]
struct Kernel {
    handle: sys::CUkernel,
    /// Whether its code may wait for the kernel before it, and so be launched before that ended.
    can_wait: bool,
}

// SAFETY: library and kernel handles belong to no thread or context.
unsafe impl Send for Context {}
// SAFETY: as above; nothing is written after construction.
unsafe impl Sync for Context {}

/// Shared memory that a block gets without asking for more.
const FREE_SHARED_BYTES: u32 = 48 << 10;

/// What the driver answers to an image without code for the device.
const NO_BINARY: u32 = sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU as u32;

/// Kernels of one image.
#[derive(Debug, Clone)]
pub(crate) struct Family {
    /// The image's name: that of its source in `cuda/`.
    pub(crate) image: &'static str,
    /// The names of its kernels.
    pub(crate) kernels: Vec<&'static str>,
    /// The most bytes of shared memory that a launch asks for.
    pub(crate) shared_bytes: u32,
    /// The one compute capability that it is for, if it is not for all.
    pub(crate) only_on: Option<(i32, i32)>,
}

impl Family {
    /// One for all GPUs.
    pub(crate) fn portable(image: &'static str, kernels: Vec<&'static str>, shared_bytes: u32) -> Self {
        Self { image, kernels, shared_bytes, only_on: None }
    }

    /// One for Hopper alone.
    pub(crate) fn hopper(image: &'static str, kernels: Vec<&'static str>, shared_bytes: u32) -> Self {
        Self { only_on: Some((9, 0)), ..Self::portable(image, kernels, shared_bytes) }
    }
}

/// A grid to launch: blocks, threads of a block, bytes of shared memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grid {
    pub(crate) blocks: u32,
    pub(crate) threads: [u32; 3],
    pub(crate) shared_bytes: u32,
}

impl Context {
    /// Loads the kernels for device `ordinal`.
    ///
    /// # Errors
    /// This build has no device code, the machine no driver or GPU, or one of them is too old; the message says which and
    /// what would be right.
    pub fn new(ordinal: i32) -> Result<Self, DeviceError> {
        Self::load_all(ordinal, true)
    }

    /// Loads only the kernels that every GPU since Ampere runs, and leaves out those that are made for one: to compare with
    /// them, or to have the same code run on GPUs of several generations.
    ///
    /// # Errors
    /// As [`Context::new`].
    pub fn portable(ordinal: i32) -> Result<Self, DeviceError> {
        Self::load_all(ordinal, false)
    }

    fn load_all(ordinal: i32, with_special: bool) -> Result<Self, DeviceError> {
        if !image::is_embedded() {
            return Err(DeviceError::NoDeviceCode);
        }
        driver::start()?;
        let (device, capability) = driver::device(ordinal)?;
        let multiprocessors = driver::multiprocessors(device)?;
        let mut context = Self { device, libraries: Vec::new(), kernels: HashMap::new(), multiprocessors };
        let mut families = crate::ops::kernel_families();
        families.retain(|family| family.only_on.is_none_or(|needed| needed == capability && with_special));
        let loaded = load_images(&families);
        // All of them before the first error is returned, so that none stays loaded.
        context.libraries.extend(loaded.iter().flatten().map(|library| library.0));
        for (family, library) in families.iter().zip(loaded) {
            match library.and_then(|library| context.find_kernels(device, family, library)) {
                // It has no PTX: a driver that is told to compile everything anew (CUDA_FORCE_PTX_JIT) can't use it, and
                // says so when the image is loaded or when its kernels are.
                Err(DeviceError::Driver { code, .. }) if code == NO_BINARY && family.only_on.is_some() => {
                    context.forget(family);
                }
                found => found?,
            }
        }
        Ok(context)
    }

    /// Whether a kernel is there: one of a family that is not for all GPUs may not be.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.kernels.contains_key(name)
    }

    /// The multiprocessors of the device.
    pub(crate) fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Takes out the kernels of a family of which only some were found.
    fn forget(&mut self, family: &Family) {
        self.kernels.retain(|name, _| !family.kernels.contains(name));
    }

    /// Finds the kernels of a family in its image.
    fn find_kernels(
        &mut self,
        device: sys::CUdevice,
        family: &Family,
        Library(library): Library,
    ) -> Result<(), DeviceError> {
        let has_current = driver::has_current_context()?;
        for &name in &family.kernels {
            let c_name = CString::new(name).map_err(|_| DeviceError::NoDeviceCode)?;
            let mut kernel = std::ptr::null_mut();
            // SAFETY: the library is loaded; the name ends in a zero.
            let found = unsafe { sys::cuLibraryGetKernel(&mut kernel, library, c_name.as_ptr()) };
            check("cuLibraryGetKernel", found)?;
            if family.shared_bytes > FREE_SHARED_BYTES {
                let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
                // SAFETY: the kernel and the device are valid.
                let set = unsafe {
                    sys::cuKernelSetAttribute(attribute, family.shared_bytes as i32, kernel, device)
                };
                check("cuKernelSetAttribute", set)?;
            }
            if has_current {
                // Loads the code into the current context now: a first launch under graph capture could not.
                let mut function = std::ptr::null_mut();
                // SAFETY: the kernel is valid, and a context is current.
                check("cuKernelGetFunction", unsafe { sys::cuKernelGetFunction(&mut function, kernel) })?;
            }
            let can_wait = driver::can_wait(kernel, device)?;
            self.kernels.insert(name, Kernel { handle: kernel, can_wait });
        }
        Ok(())
    }

    /// Launches a kernel with one parameter block, asynchronously.
    ///
    /// # Safety
    /// `params` must be the block that the kernel takes, and what it points to must be valid until the kernel ended.
    pub(crate) unsafe fn launch<P>(
        &self,
        name: &'static str,
        grid: Grid,
        params: &P,
        stream: Stream,
    ) -> Result<(), DeviceError> {
        let kernel = self.kernels.get(name).ok_or(DeviceError::NoDeviceCode)?;
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        let _entered = Primary::enter(self.device, stream)?;
        // SAFETY: the driver copies the block before it returns, and takes a kernel where it takes a function.
        let launched = unsafe {
            sys::cuLaunchKernel(
                kernel.handle.cast(),
                grid.blocks,
                1,
                1,
                grid.threads[0],
                grid.threads[1],
                grid.threads[2],
                grid.shared_bytes,
                stream.raw(),
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check("cuLaunchKernel", launched)
    }

    /// As [`Context::launch`], but the kernel may begin before the one before it on the stream has ended: as soon as all blocks
    /// of that let it. A kernel whose code can't wait is launched as any other.
    ///
    /// # Safety
    /// As [`Context::launch`]. The kernel must wait before it writes, and before it makes use of what the one before it may write; what it
    /// reads sooner must be there by then.
    pub(crate) unsafe fn launch_dependent<P>(
        &self,
        name: &'static str,
        grid: Grid,
        params: &P,
        stream: Stream,
    ) -> Result<(), DeviceError> {
        let kernel = self.kernels.get(name).ok_or(DeviceError::NoDeviceCode)?;
        if !kernel.can_wait {
            // SAFETY: the caller's promise.
            return unsafe { self.launch(name, grid, params, stream) };
        }
        // SAFETY: the caller's promise, and it can wait.
        unsafe { self.launch_with(kernel, grid, &[], params, stream) }
    }

    /// As [`Context::launch_dependent`], in clusters of so many blocks, 8 at most, of which the grid has a multiple.
    ///
    /// # Safety
    /// As [`Context::launch_dependent`]. The kernel must be one for clusters.
    pub(crate) unsafe fn launch_clusters<P>(
        &self,
        name: &'static str,
        grid: Grid,
        cluster: u32,
        params: &P,
        stream: Stream,
    ) -> Result<(), DeviceError> {
        let kernel = self.kernels.get(name).ok_or(DeviceError::NoDeviceCode)?;
        let attribute = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                clusterDim: sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: cluster, y: 1, z: 1 },
            },
        };
        // SAFETY: the caller's promise.
        unsafe { self.launch_with(kernel, grid, &[attribute], params, stream) }
    }

    /// A launch that may begin early, with another attribute or none.
    ///
    /// # Safety
    /// As [`Context::launch_dependent`], of a kernel that can wait.
    unsafe fn launch_with<P>(
        &self,
        kernel: &Kernel,
        grid: Grid,
        attributes: &[sys::CUlaunchAttribute],
        params: &P,
        stream: Stream,
    ) -> Result<(), DeviceError> {
        let mut all = [sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        }; 2];
        all[1..][..attributes.len()].copy_from_slice(attributes);
        let config = sys::CUlaunchConfig {
            gridDimX: grid.blocks,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: grid.threads[0],
            blockDimY: grid.threads[1],
            blockDimZ: grid.threads[2],
            sharedMemBytes: grid.shared_bytes,
            hStream: stream.raw(),
            attrs: all.as_mut_ptr(),
            numAttrs: 1 + attributes.len() as u32,
        };
        let mut arguments = [std::ptr::from_ref(params).cast_mut().cast::<c_void>()];
        let _entered = Primary::enter(self.device, stream)?;
        // SAFETY: the driver copies the block and the attributes before it returns, and takes a kernel where it takes a function.
        let launched = unsafe {
            sys::cuLaunchKernelEx(&config, kernel.handle.cast(), arguments.as_mut_ptr(), std::ptr::null_mut())
        };
        check("cuLaunchKernelEx", launched)
    }

    /// Writes a value to some 32-bit words of device memory, in the order of the stream.
    ///
    /// # Safety
    /// The address must be of as many words of device memory of the stream's context, a multiple of 4.
    pub(crate) unsafe fn fill_words(
        &self,
        address: u64,
        value: u32,
        count: usize,
        stream: Stream,
    ) -> Result<(), DeviceError> {
        let _entered = Primary::enter(self.device, stream)?;
        // SAFETY: the caller's promise.
        check("cuMemsetD32Async", unsafe { sys::cuMemsetD32Async(address, value, count, stream.raw()) })
    }

    /// Has other work on a default stream go where a launch would, for as long as what is returned lives.
    pub(crate) fn enter(&self, stream: Stream) -> Result<Option<Primary>, DeviceError> {
        Primary::enter(self.device, stream)
    }
}

/// An image that was loaded.
#[derive(Debug, Clone, Copy)]
struct Library(sys::CUlibrary);

// SAFETY: a handle that belongs to no thread or context.
unsafe impl Send for Library {}

/// Loads the image of each family, side by side: where the driver has to compile PTX, one takes seconds.
fn load_images(families: &[Family]) -> Vec<Result<Library, DeviceError>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = families
            .iter()
            .map(|family| std::thread::Builder::new().spawn_scoped(scope, || load_image(family)))
            .collect();
        let result = |(family, thread): (&Family, std::io::Result<ScopedJoinHandle<'_, _>>)| match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            // There is no thread to be had.
            Err(_) => load_image(family),
        };
        families.iter().zip(threads).map(result).collect()
    })
}

fn load_image(family: &Family) -> Result<Library, DeviceError> {
    let image = image::image(family.image).ok_or(DeviceError::NoDeviceCode)?;
    let mut library = std::ptr::null_mut();
    let none = std::ptr::null_mut;
    // SAFETY: the image is a fat binary that nvcc made, and lives as long as the program.
    let loaded = unsafe {
        sys::cuLibraryLoadData(
            &mut library,
            image.as_ptr().cast(),
            none(),
            none().cast(),
            0,
            none().cast(),
            none().cast(),
            0,
        )
    };
    check("cuLibraryLoadData", loaded)?;
    Ok(Library(library))
}

impl Drop for Context {
    fn drop(&mut self) {
        for library in self.libraries.drain(..) {
            // SAFETY: loaded by `load`, and not used after this. An error can't be reported, and does no harm.
            let _ = unsafe { sys::cuLibraryUnload(library) };
        }
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("kernels", &self.kernels.len()).finish()
    }
}
