//! The functions of [`super::tile`] for the processor that this runs on.

use super::elements::{Bf16, F16, F32, Kind, Q4_0, Q8_0};
use super::tile::{HEADS, Rows, Soon};

pub(super) type Scores = unsafe fn(*const f32, usize, Rows<'_>, Soon<'_>, *mut f32);
pub(super) type Weights = unsafe fn(*mut f32, usize, f32) -> (f32, f32, f32);
pub(super) type Weigh = unsafe fn(*const f32, Rows<'_>, Soon<'_>, usize, *mut f32);

/// What a processor can do at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processor {
    /// x86 with AVX-512.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// x86 with AVX2, FMA and F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// 64-bit ARM.
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// Any.
    Portable,
}

impl Processor {
    /// All that this machine can run, the fastest first.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                all.push(Self::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                all.push(Self::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        all.push(Self::Neon);
        all.push(Self::Portable);
        all
    }

    /// The fastest.
    pub fn here() -> Self {
        static HERE: std::sync::OnceLock<Processor> = std::sync::OnceLock::new();
        *HERE.get_or_init(|| Self::all()[0])
    }
}

/// By the number of heads less one.
pub(super) struct Functions {
    pub scores: [Scores; HEADS],
    pub weights: Weights,
    pub weigh: [Weigh; HEADS],
}

/// Functions of one processor: `$features` are what it is asked to have.
macro_rules! functions {
    ($name:ident, $lanes:ty $(, $features:literal)?) => {
        mod $name {
            use super::super::elements::Elements;
            use super::super::tile::{self, Rows, Soon};

            /// # Safety
            /// As [`tile::scores`].
            $(#[target_feature(enable = $features)])?
            pub unsafe fn scores<E: Elements, const N: usize>(
                queries: *const f32,
                blocks: usize,
                keys: Rows<'_>,
                soon: Soon<'_>,
                out: *mut f32,
            ) {
                // SAFETY: by this function's contract.
                unsafe { tile::scores::<$lanes, E, N>(queries, blocks, keys, soon, out) }
            }

            /// # Safety
            /// As [`tile::weights`].
            $(#[target_feature(enable = $features)])?
            pub unsafe fn weights(scores: *mut f32, n: usize, max: f32) -> (f32, f32, f32) {
                // SAFETY: by this function's contract.
                unsafe { tile::weights::<$lanes>(scores, n, max) }
            }

            /// # Safety
            /// As [`tile::weigh`].
            $(#[target_feature(enable = $features)])?
            pub unsafe fn weigh<E: Elements, const N: usize>(
                weights: *const f32,
                values: Rows<'_>,
                soon: Soon<'_>,
                blocks: usize,
                sums: *mut f32,
            ) {
                // SAFETY: by this function's contract.
                unsafe { tile::weigh::<$lanes, E, N>(weights, values, soon, blocks, sums) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
functions!(avx512, super::super::x86::Avx512, "avx512f");
#[cfg(target_arch = "x86_64")]
functions!(avx2, super::super::x86::Avx2, "avx2,fma,f16c");
#[cfg(target_arch = "aarch64")]
functions!(neon, super::super::neon::Neon);
functions!(portable, super::super::lanes::Portable);

/// For one and up to [`HEADS`] heads.
macro_rules! for_heads {
    ($function:ident of $name:ident, $elements:ty) => {
        [
            $name::$function::<$elements, 1>,
            $name::$function::<$elements, 2>,
            $name::$function::<$elements, 3>,
            $name::$function::<$elements, 4>,
        ]
    };
}

/// For any type of elements; those that are not read by hand come as floats.
macro_rules! for_kind {
    ($function:ident of $name:ident, $kind:expr) => {
        match $kind {
            Kind::F32 | Kind::Other(_) => for_heads!($function of $name, F32),
            Kind::F16 => for_heads!($function of $name, F16),
            Kind::Bf16 => for_heads!($function of $name, Bf16),
            Kind::Q8_0 => for_heads!($function of $name, Q8_0),
            Kind::Q4_0 => for_heads!($function of $name, Q4_0),
        }
    };
}

macro_rules! for_processor {
    ($name:ident, $keys:expr, $values:expr) => {
        Functions {
            scores: for_kind!(scores of $name, $keys),
            weights: $name::weights,
            weigh: for_kind!(weigh of $name, $values),
        }
    };
}

impl Functions {
    /// The functions of `processor`, which has to be one of [`Processor::all`].
    pub fn new(processor: Processor, keys: Kind, values: Kind) -> Self {
        match processor {
            #[cfg(target_arch = "x86_64")]
            Processor::Avx512 => for_processor!(avx512, keys, values),
            #[cfg(target_arch = "x86_64")]
            Processor::Avx2 => for_processor!(avx2, keys, values),
            #[cfg(target_arch = "aarch64")]
            Processor::Neon => for_processor!(neon, keys, values),
            Processor::Portable => for_processor!(portable, keys, values),
        }
    }
}
