//! Giving up what is not needed any more, once everything is open.
#![expect(unsafe_code, reason = "system calls")]

use std::ffi::CString;
use std::io;
use std::path::Path;

use xen::Xen;

use crate::cli::{Config, User};
use crate::run::Failure;

/// Limits the process to its domain, and to the root directory and user that the options name.
///
/// # Errors
/// Something that was asked for could not be done.
pub fn drop(config: &Config, xen: &Xen) -> Result<(), Failure> {
    match xen.restrict() {
        Ok(()) => {}
        Err(error) if config.restrict => return Err(format!("failed to restrict: {error}").into()),
        // A kernel before 4.11 cannot; nobody asked for it.
        Err(error) => log::info!("not restricted to the domain: {error}"),
    }
    // Looked up before the new root directory hides the user database.
    let user = config.user.as_ref().map(identity).transpose()?;
    if let Some(root) = &config.chroot {
        change_root(root).map_err(|error| format!("-chroot {}: {error}", root.display()))?;
    }
    if let Some((uid, gid)) = user {
        become_user(uid, gid).map_err(|error| format!("cannot become user {uid}:{gid}: {error}"))?;
    }
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

fn change_root(root: &Path) -> io::Result<()> {
    rustix::process::chroot(root)?;
    Ok(rustix::process::chdir("/")?)
}

/// User and group id of `user`.
fn identity(user: &User) -> Result<(u32, u32), Failure> {
    let name = match user {
        User::Ids(uid, gid) => return Ok((*uid, *gid)),
        User::Name(name) => name,
    };
    let unknown = || format!("-runas {name}: User doesn't exist");
    let text = CString::new(name.as_str()).map_err(|_| unknown())?;
    // SAFETY: `text` is a C string. The answer points into storage of the C library that stays valid until
    // the next such call; there is only one, on this thread.
    let entry = unsafe { libc::getpwnam(text.as_ptr()).as_ref() };
    let entry = entry.ok_or_else(unknown)?;
    Ok((entry.pw_uid, entry.pw_gid))
}

/// Becomes this user in all threads, which the raw system calls would not do.
fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    let check = |result: libc::c_int| if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
    // SAFETY: no memory is passed but the one group.
    check(unsafe { libc::setgroups(1, &gid) })?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::setgid(gid) })?;
    // SAFETY: no memory is passed.
    check(unsafe { libc::setuid(uid) })
}
