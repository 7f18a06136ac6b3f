//! Products of float32 matrices that lie in slices, in any order of rows and columns.

/// A matrix in a slice.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    shape: [usize; 2],
    strides: [usize; 2],
}

impl<'a> Matrix<'a> {
    /// Rows of `n` columns, each `stride` elements after the one before.
    pub fn rows(data: &'a [f32], rows: usize, n: usize, stride: usize) -> Self {
        Self { data, shape: [rows, n], strides: [stride, 1] }.checked()
    }

    /// Rows as columns.
    pub fn transposed(self) -> Self {
        let ([rows, columns], [row, column]) = (self.shape, self.strides);
        Self { data: self.data, shape: [columns, rows], strides: [column, row] }
    }

    fn checked(self) -> Self {
        assert!(reaches(self.data.len(), self.shape, self.strides), "a matrix beyond its slice");
        self
    }
}

/// Whether the last element is inside.
fn reaches(len: usize, [rows, columns]: [usize; 2], [row, column]: [usize; 2]) -> bool {
    rows == 0 || columns == 0 || (rows - 1) * row + (columns - 1) * column < len
}

/// `to = a b + beta to`, where `to` has rows `stride` elements apart. With a `beta` of 0 nothing of `to` is read.
pub fn multiply(a: Matrix<'_>, b: Matrix<'_>, beta: f32, to: &mut [f32], stride: usize) {
    let ([m, k], [k2, n]) = (a.shape, b.shape);
    assert_eq!(k, k2, "as many columns as rows");
    assert!(reaches(to.len(), [m, n], [stride, 1]) && (stride >= n || m <= 1), "a product beyond its slice");
    let at = |stride: usize| isize::try_from(stride).expect("a stride inside a slice");
    // SAFETY: all elements of the three lie inside their slices, and those of `to` do not overlap.
    unsafe {
        matrixmultiply::sgemm(
            m,
            k,
            n,
            1.0,
            a.data.as_ptr(),
            at(a.strides[0]),
            at(a.strides[1]),
            b.data.as_ptr(),
            at(b.strides[0]),
            at(b.strides[1]),
            beta,
            to.as_mut_ptr(),
            at(stride),
            1,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        (0..n)
            .map(|i| ((i as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 16) as f32 / 32768.0 - 1.0)
            .collect()
    }

    proptest! {
        #[test]
        fn multiplies_as_sums_do(m in 1..40usize, k in 1..70usize, n in 1..40usize, turned in any::<[bool; 2]>(), seed: u32) {
            let (a, b) = (values(m * k, seed), values(k * n, seed.wrapping_add(9)));
            let a_of = |i: usize, l: usize| if turned[0] { a[l * m + i] } else { a[i * k + l] };
            let b_of = |l: usize, j: usize| if turned[1] { b[j * k + l] } else { b[l * n + j] };
            let left = if turned[0] { Matrix::rows(&a, k, m, m).transposed() } else { Matrix::rows(&a, m, k, k) };
            let right = if turned[1] { Matrix::rows(&b, n, k, k).transposed() } else { Matrix::rows(&b, k, n, n) };
            let mut found = vec![0.5; m * n];
            multiply(left, right, 1.0, &mut found, n);
            for i in 0..m {
                for j in 0..n {
                    let sum: f64 = (0..k).map(|l| f64::from(a_of(i, l)) * f64::from(b_of(l, j))).sum();
                    // Sums of at most 70 products of numbers below 1, in float32.
                    let error = (f64::from(found[i * n + j]) - 0.5 - sum).abs();
                    prop_assert!(error <= 1e-5, "{error}");
                }
            }
        }

        #[test]
        fn columns_have_the_same_bits_beside_any_others(m in 1..40usize, k in 1..300usize, n in 2..80usize, seed: u32) {
            let (a, b) = (values(m * k, seed), values(k * n, seed.wrapping_add(9)));
            let mut all = vec![0.0; m * n];
            multiply(Matrix::rows(&a, m, k, k), Matrix::rows(&b, k, n, n), 0.0, &mut all, n);
            let cut = n / 2;
            let mut part = vec![0.0; m * (n - cut)];
            multiply(Matrix::rows(&a, m, k, k), Matrix::rows(&b[cut..], k, n - cut, n), 0.0, &mut part, n - cut);
            for i in 0..m {
                let (one, other) = (&all[i * n + cut..(i + 1) * n], &part[i * (n - cut)..(i + 1) * (n - cut)]);
                prop_assert!(one.iter().zip(other).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }
    }
}
