# Synthesis, placement, routing, reports; then the bitstream under the names that PYNQ wants.
source settings.tcl

proc finish {run} {
  wait_on_run $run
  if {[get_property PROGRESS [get_runs $run]] ne "100%"} {
    error "$run must end well; see work/system/system.runs/$run/runme.log"
  }
}

open_project work/system/system.xpr
launch_runs synth_1 -jobs 4
finish synth_1
launch_runs impl_1 -to_step write_bitstream -jobs 4
finish impl_1
open_run impl_1
report_timing_summary -file reports/timing.rpt
report_utilization -file reports/utilization.rpt
set slack [get_property STATS.WNS [get_runs impl_1]]
if {$slack < 0} {
  error "slack must be at least 0 ns, not $slack; ask for a slower clock, or see reports/timing.rpt"
}
file mkdir [file dirname $overlay]
file copy -force work/system/system.runs/impl_1/system_wrapper.bit $overlay.bit
set described [glob work/system/system.gen/sources_1/bd/system/hw_handoff/system.hwh]
file copy -force [lindex $described 0] $overlay.hwh
close_project
