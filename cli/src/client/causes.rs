//! What lies below an error of the HTTP client.

/// The first error below this one of a type.
fn cause<'a, T: std::error::Error + 'static>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a T> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        // An I/O error hides what it wraps from `source`.
        if let Some(inner) = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref()) {
            let inner: &(dyn std::error::Error + 'static) = inner;
            if let Some(found) = cause::<T>(inner) {
                return Some(found);
            }
        }
        next = error.source();
    }
    None
}

/// Whether the server's certificate was refused.
pub(super) fn is_certificate_error(error: &reqwest::Error) -> bool {
    matches!(cause::<rustls::Error>(error), Some(rustls::Error::InvalidCertificate(_)))
}

/// The error of our own file, where it was that which broke the request.
pub(super) fn upload_error(error: &reqwest::Error) -> Option<&std::io::Error> {
    cause::<crate::inputs::ReadError>(error).map(|error| &error.0)
}

/// Why a connection was lost, in words.
pub(super) fn loss(error: &reqwest::Error) -> String {
    match cause::<std::io::Error>(error) {
        Some(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => "the server closed it".to_owned(),
        Some(error) => error.to_string(),
        None => crate::failure::chain(error),
    }
}
