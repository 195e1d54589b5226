// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the program prints, compared with files that are kept; for the crate's unit tests and `tests/metrics.rs`.

use std::fs;
use std::path::Path;

/// Fails unless `tests/golden/NAME` is `text`, which `ASYNCFORK_GOLDEN=write` makes it.
pub fn expect(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    if std::env::var_os("ASYNCFORK_GOLDEN").is_some_and(|v| v == "write") {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        text,
        wanted,
        "{}; ASYNCFORK_GOLDEN=write writes it",
        path.display()
    );
}
