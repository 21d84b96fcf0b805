// The parts of a DSP48E1 that multiply and add, written from its guide.
// Ref: AMD UG479, 7 Series DSP48E1 Slice: figure of the slice's registers, tables of INMODE, OPMODE
// and ALUMODE. Everything that is not modelled stops the simulation when it is asked for.
module DSP48E1 #(
    parameter AREG = 1, ACASCREG = 1, DREG = 1, ADREG = 1, BREG = 1, BCASCREG = 1, CREG = 1,
    parameter MREG = 1, PREG = 1, OPMODEREG = 1, INMODEREG = 1, ALUMODEREG = 1, CARRYINREG = 1,
    parameter CARRYINSELREG = 1,
    parameter A_INPUT = "DIRECT", B_INPUT = "DIRECT", USE_MULT = "MULTIPLY", USE_SIMD = "ONE48",
    parameter USE_DPORT = "FALSE", USE_PATTERN_DETECT = "NO_PATDET"
) (
    input CLK,
    input [29:0] A, input [24:0] D, input [17:0] B, input [47:0] C,
    input [4:0] INMODE, input [6:0] OPMODE, input [3:0] ALUMODE, input CARRYIN,
    input [2:0] CARRYINSEL,
    input [47:0] PCIN, input [29:0] ACIN, input [17:0] BCIN, input CARRYCASCIN, MULTSIGNIN,
    input CEA1, CEA2, CEAD, CEALUMODE, CEB1, CEB2, CEC, CECARRYIN, CECTRL, CED, CEINMODE, CEM, CEP,
    input RSTA, RSTALLCARRYIN, RSTALUMODE, RSTB, RSTC, RSTCTRL, RSTD, RSTINMODE, RSTM, RSTP,
    output [47:0] P, output [47:0] PCOUT
);
    reg signed [29:0] a2;
    reg signed [24:0] d, ad;
    reg signed [17:0] b1, b2;
    reg signed [47:0] m, p;
    reg [6:0] opmode;

    wire signed [42:0] product = ad * b2;
    reg signed [47:0] x_y, z;  // where X and Y both select M, together it is the product
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
            3'b011: z = C;
            default: z = 48'hx;
        endcase
    end

    always @(posedge CLK) begin
        if (CEA2) a2 <= A;  // AREG = 1 leaves A2
        if (CED) d <= D;
        if (CEAD) ad <= d + $signed(a2[24:0]);  // INMODE = 00100
        if (CEB1) b1 <= B;
        if (CEB2) b2 <= b1;
        if (CEM) m <= {{5{product[42]}}, product};
        if (CECTRL) opmode <= OPMODE;
        if (CEP) p <= z + x_y;
    end
    assign P = p;
    assign PCOUT = p;

    wire multiplies = AREG == 1 && DREG == 1 && ADREG == 1 && BREG == 2 && CREG == 0 && MREG == 1
        && PREG == 1 && OPMODEREG == 1 && USE_DPORT == "TRUE" && USE_MULT == "MULTIPLY"
        && USE_SIMD == "ONE48";
    initial begin
        if (!multiplies || INMODEREG != 0 || ALUMODEREG != 0 || CARRYINREG != 0
            || CARRYINSELREG != 0 || A_INPUT != "DIRECT" || B_INPUT != "DIRECT") begin
            $display("DSP48E1: these attributes are not modelled");
            $stop;
        end
    end
    always @(posedge CLK) begin
        if (INMODE != 5'b00100 || ALUMODE != 0 || CARRYINSEL != 0 || CARRYIN
            || RSTA || RSTALLCARRYIN || RSTALUMODE || RSTB || RSTC || RSTCTRL || RSTD || RSTINMODE
            || RSTM || RSTP) begin
            $display("DSP48E1: this mode is not modelled");
            $stop;
        end
    end
endmodule
