//! Names of responses and jobs.

/// A name that no other response has.
pub fn random_id(prefix: &str) -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    const LETTERS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
    let mut id = prefix.to_owned();
    for _ in 0..4 {
        let mut bits = RandomState::new().build_hasher().finish();
        for _ in 0..8 {
            id.push(LETTERS[(bits % LETTERS.len() as u64) as usize] as char);
            bits /= LETTERS.len() as u64;
        }
    }
    id
}
