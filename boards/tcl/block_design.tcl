# Joins the packaged IP to the processing system: control, memory, clock, reset, interrupt.
# Ref: AMD UG994, Designing IP Subsystems; UG835, Tcl commands.
source settings.tcl

proc block {kind cell} {
  set found [get_ipdefs "xilinx.com:ip:$kind:*"]
  if {[llength $found] == 0} { error "Vivado has no IP named $kind" }
  return [create_bd_cell -type ip -vlnv [lindex $found end] $cell]
}
proc wire {from args} {
  foreach to $args { connect_bd_net [get_bd_pins $from] [get_bd_pins $to] }
}
proc bus {from to} {
  connect_bd_intf_net [get_bd_intf_pins $from] [get_bd_intf_pins $to]
}

create_project -force system work/system -part $part
set parts [get_board_parts -quiet -latest_file_version $board_part]
if {[llength $parts] == 0} {
  error "Vivado must have the board files of $board_part; install them, then run build.sh again"
}
set_property board_part [lindex $parts end] [current_project]
if {$board_connections ne ""} {
  set_property board_connections $board_connections [current_project]
}
set_property ip_repo_paths work/ip [current_project]
update_ip_catalog

create_bd_design system
block $processor ps
apply_bd_automation -rule xilinx.com:bd_rule:$processor_rule -config $processor_automation \
  [get_bd_cells ps]
set_property -dict $processor_settings [get_bd_cells ps]
create_bd_cell -type ip -vlnv $vlnv $name

set clock ps/$processor_clock
block proc_sys_reset reset
wire $clock reset/slowest_sync_clk $name/$clock_port ps/$control_clock
wire ps/$processor_reset reset/ext_reset_in
wire reset/peripheral_aresetn $name/$reset_port

# Control: our registers, and the interrupt controller that PYNQ wants between us and the processor.
block axi_intc interrupts
set_property CONFIG.C_IRQ_CONNECTION 1 [get_bd_cells interrupts]
block smartconnect control
set_property -dict {CONFIG.NUM_SI 1 CONFIG.NUM_MI 2} [get_bd_cells control]
bus ps/$control_port control/S00_AXI
bus control/M00_AXI $name/s_axi_control
bus control/M01_AXI interrupts/s_axi
wire $clock control/aclk interrupts/s_axi_aclk
wire reset/peripheral_aresetn control/aresetn interrupts/s_axi_aresetn
wire $name/interrupt interrupts/intr
wire interrupts/irq ps/$processor_interrupt

# Memory: SmartConnect makes our widths and protocol those of the processor's ports.
foreach joined $memory {
  lassign $joined master port port_clock
  set cell memory_$master
  block smartconnect $cell
  set_property -dict {CONFIG.NUM_SI 1 CONFIG.NUM_MI 1} [get_bd_cells $cell]
  bus $name/$master $cell/S00_AXI
  bus $cell/M00_AXI ps/$port
  wire $clock $cell/aclk ps/$port_clock
  wire reset/peripheral_aresetn $cell/aresetn
}

assign_bd_address
validate_bd_design
save_bd_design
set design [get_files system.bd]
generate_target all $design
set wrapper [make_wrapper -files $design -top]
add_files -norecurse $wrapper
add_files -fileset constrs_1 -norecurse constraints.xdc
set_property top system_wrapper [current_fileset]
update_compile_order -fileset sources_1
close_project
