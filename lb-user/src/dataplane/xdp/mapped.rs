//! Array maps that both sides see as memory. The only unsafe door to them.

use std::{
    marker::PhantomData,
    os::fd::AsFd,
    ptr::NonNull,
    sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering},
};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A `BPF_F_MMAPABLE` array of `T`, mapped shared. `T` is `repr(C)`, has no padding that matters,
/// and a size that is a multiple of eight bytes.
pub struct MappedArray<T> {
    memory: NonNull<u8>,
    bytes: usize,
    length: usize,
    element: PhantomData<T>,
}

// SAFETY: the mapping is plain shared memory that every access below treats as atomic words.
unsafe impl<T> Send for MappedArray<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for MappedArray<T> {}

impl<T: Copy> MappedArray<T> {
    /// Maps the array behind `fd`, which has `length` elements.
    pub fn new(fd: impl AsFd, length: u32) -> rustix::io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let length = length as usize;
        let page = rustix::param::page_size();
        let bytes = (length * size_of::<T>()).next_multiple_of(page);
        // SAFETY: a fresh mapping at an address of the kernel's choice; `fd` may be closed after.
        let memory = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )
        }?;
        let memory = NonNull::new(memory.cast()).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Self {
            memory,
            bytes,
            length,
            element: PhantomData,
        })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.length
    }

    /// The 64-bit word at `offset` bytes into element `index`.
    pub fn word(&self, index: usize, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8) && offset < size_of::<T>());
        // SAFETY: in bounds and aligned (asserted here and in `place`); shared memory is accessed
        // atomically by both sides.
        unsafe { AtomicU64::from_ptr(self.place(index).add(offset).cast()) }
    }

    /// The 32-bit word at `offset` bytes into element `index`.
    pub fn half_word(&self, index: usize, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset < size_of::<T>());
        // SAFETY: as in `word`.
        unsafe { AtomicU32::from_ptr(self.place(index).add(offset).cast()) }
    }

    /// The byte at `offset` into element `index`.
    pub fn byte(&self, index: usize, offset: usize) -> &AtomicU8 {
        assert!(offset < size_of::<T>());
        // SAFETY: as in `word`.
        unsafe { AtomicU8::from_ptr(self.place(index).add(offset)) }
    }

    /// Reads an element word by word.
    pub fn load(&self, index: usize) -> T {
        let mut value = std::mem::MaybeUninit::<T>::uninit();
        for offset in (0..size_of::<T>()).step_by(8) {
            let word = self.word(index, offset).load(Ordering::Acquire);
            // SAFETY: `offset` + 8 is within `T`, whose size is a multiple of eight.
            unsafe {
                value
                    .as_mut_ptr()
                    .byte_add(offset)
                    .cast::<u64>()
                    .write_unaligned(word);
            };
        }
        // SAFETY: every byte was written, and map elements are plain integers.
        unsafe { value.assume_init() }
    }

    /// Writes an element word by word, the first word last: it carries the flags that make the
    /// others count.
    pub fn store(&self, index: usize, value: &T) {
        for offset in (0..size_of::<T>()).step_by(8).rev() {
            // SAFETY: `offset` + 8 is within `T`, whose size is a multiple of eight.
            let word = unsafe {
                std::ptr::from_ref(value)
                    .byte_add(offset)
                    .cast::<u64>()
                    .read_unaligned()
            };
            self.word(index, offset).store(word, Ordering::Release);
        }
    }

    fn place(&self, index: usize) -> *mut u8 {
        assert!(index < self.length, "element {index} of {}", self.length);
        // SAFETY: within the mapping, which covers `length` elements.
        unsafe { self.memory.as_ptr().add(index * size_of::<T>()) }
    }
}

impl<T> Drop for MappedArray<T> {
    fn drop(&mut self) {
        // SAFETY: `memory` and `bytes` are what `mmap` returned, and no reference outlives `self`.
        let _ = unsafe { munmap(self.memory.as_ptr().cast(), self.bytes) };
    }
}
