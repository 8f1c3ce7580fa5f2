//! `lbctl capture`: a file that grows until somebody has seen enough.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use lb_user::api::client::{self, ClientError};

/// Writes what comes to `file` until the end or an interrupt.
pub async fn run(socket: &Path, path: &str, file: &Path) -> Result<String, ClientError> {
    let failed = |source: io::Error| ClientError::File {
        path: file.display().to_string(),
        source,
    };
    let mut output: Box<dyn Write> = if file == Path::new("-") {
        Box::new(io::stdout())
    } else {
        Box::new(File::create(file).map_err(failed)?)
    };
    let mut result = Ok(());
    let take = |bytes: &[u8]| {
        result = output.write_all(bytes).and_then(|()| output.flush());
        result.is_ok()
    };
    tokio::select! {
        ended = client::stream(socket, path, take) => ended?,
        // What was captured until now is a whole file.
        _ = tokio::signal::ctrl_c() => {}
    }
    result.map_err(failed)?;
    Ok(String::new())
}
