// The parts of a DSP48E2 that multiply and add, written from its guide.
// Ref: AMD UG579, UltraScale Architecture DSP Slice: figure of the slice's registers, tables
// "INMODE Functions", "OPMODE Control Bits" and "Attribute Settings". Everything that is not
// modelled stops the simulation when it is asked for.
module DSP48E2 #(
    parameter AREG = 1, ACASCREG = 1, DREG = 1, ADREG = 1, BREG = 1, BCASCREG = 1, CREG = 1,
    parameter MREG = 1, PREG = 1, OPMODEREG = 1, INMODEREG = 1, ALUMODEREG = 1, CARRYINREG = 1,
    parameter CARRYINSELREG = 1,
    parameter AMULTSEL = "A", BMULTSEL = "B", PREADDINSEL = "A", A_INPUT = "DIRECT",
    parameter B_INPUT = "DIRECT", USE_MULT = "MULTIPLY", USE_SIMD = "ONE48",
    parameter USE_WIDEXOR = "FALSE", USE_PATTERN_DETECT = "NO_PATDET"
) (
    input CLK,
    input [29:0] A, input [26:0] D, input [17:0] B, input [47:0] C,
    input [4:0] INMODE, input [8:0] OPMODE, input [3:0] ALUMODE, input CARRYIN,
    input [2:0] CARRYINSEL,
    input [47:0] PCIN, input [29:0] ACIN, input [17:0] BCIN, input CARRYCASCIN, MULTSIGNIN,
    input CEA1, CEA2, CEAD, CEALUMODE, CEB1, CEB2, CEC, CECARRYIN, CECTRL, CED, CEINMODE, CEM, CEP,
    input RSTA, RSTALLCARRYIN, RSTALUMODE, RSTB, RSTC, RSTCTRL, RSTD, RSTINMODE, RSTM, RSTP,
    output [47:0] P, output [47:0] PCOUT
);
    reg signed [29:0] a2;
    reg signed [26:0] d, ad;
    reg signed [17:0] b1, b2;
    reg signed [47:0] m, p;
    reg [8:0] opmode;

    // AMULTSEL = "AD": the 27 low bits of A go through the pre-adder.
    wire signed [26:0] pre_a = INMODE[1] ? 27'sd0 : a2[26:0];
    wire signed [26:0] pre_d = INMODE[2] ? d : 27'sd0;
    wire signed [44:0] product = ad * b2;

    reg signed [47:0] x_y, z;  // X and Y both select M, which together is the product
    always @* begin
        case (opmode[3:0])
            4'b0000: x_y = 0;
            4'b0101: x_y = m;
            default: x_y = 48'hx;
        endcase
        case (opmode[6:4])
            3'b000: z = 0;
            3'b001: z = PCIN;
            3'b010: z = p;
            default: z = 48'hx;
        endcase
    end

    always @(posedge CLK) begin
        if (CEA2) a2 <= A;  // AREG = 1 leaves A2
        if (CED) d <= D;
        if (CEAD) ad <= INMODE[3] ? pre_d - pre_a : pre_d + pre_a;
        if (CEB1) b1 <= B;
        if (CEB2) b2 <= b1;
        if (CEM) m <= {{3{product[44]}}, product};
        if (CECTRL) opmode <= OPMODE;
        if (CEP) p <= z + x_y;
    end
    assign P = p;
    assign PCOUT = p;

    initial begin
        if (AREG != 1 || DREG != 1 || ADREG != 1 || BREG != 2 || MREG != 1 || PREG != 1
            || OPMODEREG != 1 || INMODEREG != 0 || ALUMODEREG != 0 || CARRYINREG != 0
            || CARRYINSELREG != 0 || AMULTSEL != "AD" || BMULTSEL != "B" || PREADDINSEL != "A"
            || A_INPUT != "DIRECT" || B_INPUT != "DIRECT" || USE_MULT != "MULTIPLY"
            || USE_SIMD != "ONE48") begin
            $display("DSP48E2: these attributes are not modelled");
            $stop;
        end
    end
    always @(posedge CLK) begin
        if (INMODE[0] || INMODE[1] || INMODE[4] || ALUMODE != 0 || CARRYINSEL != 0 || CARRYIN
            || OPMODE[8:7] != 0
            || RSTA || RSTALLCARRYIN || RSTALUMODE || RSTB || RSTC || RSTCTRL || RSTD || RSTINMODE
            || RSTM || RSTP) begin
            $display("DSP48E2: this mode is not modelled");
            $stop;
        end
    end
endmodule
