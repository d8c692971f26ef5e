//! Passwords: argon2id with the parameters that OWASP recommends (19 MiB, two
//! passes, one lane), which are the crate's defaults.

use argon2::password_hash::SaltString;
use argon2::{Argon2, PasswordHash, PasswordHasher, PasswordVerifier};
use podyard::{Error, Result};

/// Fewest characters of a password.
const SHORTEST: usize = 8;
/// Most bytes: hashing must not be a way to keep the server busy.
const LONGEST: usize = 256;

/// Refuses a password that is too easy or too long.
pub(crate) fn check(password: &str) -> Result<()> {
    let weak = |text: &str| Err(Error::field("password", text).class("WeakPasswordError"));
    if password.chars().count() < SHORTEST {
        return weak("must have at least 8 characters");
    }
    if password.len() > LONGEST {
        return weak("must have at most 256 bytes");
    }
    let mut chars: Vec<char> = password.chars().collect();
    chars.sort_unstable();
    chars.dedup();
    if chars.len() < 4 {
        return weak("must have at least 4 different characters");
    }
    Ok(())
}

/// The hash to keep. Takes tens of milliseconds.
pub(crate) fn hash(password: &str) -> Result<String> {
    let bytes: [u8; 16] = rand::random();
    let salt = SaltString::encode_b64(&bytes).map_err(|e| Error::internal(e.to_string()))?;
    let hash = Argon2::default().hash_password(password.as_bytes(), &salt);
    hash.map(|it| it.to_string()).map_err(|e| Error::internal(e.to_string()))
}

/// Whether a password is the one. Takes tens of milliseconds.
pub(crate) fn verify(password: &str, hash: &str) -> bool {
    if password.len() > LONGEST {
        return false;
    }
    PasswordHash::new(hash)
        .is_ok_and(|it| Argon2::default().verify_password(password.as_bytes(), &it).is_ok())
}

/// A password nobody has thought of: 120 bits in 20 characters without those
/// that look alike.
pub(crate) fn random() -> String {
    const ALPHABET: &[u8; 64] = b"abcdefghijkmnopqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789-_+=.:@";
    let bytes: [u8; 20] = rand::random();
    bytes.iter().map(|b| char::from(ALPHABET[usize::from(b & 63)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_password_itself_is_accepted() {
        let hash = hash("correct horse").unwrap();
        assert!(hash.starts_with("$argon2id$"));
        assert!(verify("correct horse", &hash));
        assert!(!verify("correct horse ", &hash) && !verify("", &hash));
        assert!(!verify("correct horse", "no hash"));
    }

    #[test]
    fn easy_ones_are_refused() {
        for bad in ["short", "aaaaaaaaaaaa", &"x1y2".repeat(100)] {
            assert_eq!(check(bad).unwrap_err().class_name(), "WeakPasswordError");
        }
        check(&random()).unwrap();
    }
}
