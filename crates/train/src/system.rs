//! What the operating system says about this process and machine.

/// Highest resident memory of this process so far, in bytes; 0 where the system does not tell.
pub fn peak_resident_bytes() -> u64 {
    // Linux: "VmHWM:     12345 kB"
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|rest| rest.split_whitespace().next()).and_then(|number| number.parse::<u64>().ok());
    kilobytes.map_or(0, |kilobytes| kilobytes * 1024)
}

/// Cores this process may use, at least 1.
pub fn num_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
